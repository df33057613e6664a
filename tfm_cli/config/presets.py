"""Presets: model shapes with a training recipe, and the run on the sample corpus."""

from tfm_cli.config.settings import Value

# Values that differ from the defaults. `base` and `big` are from table 3 of Vaswani et al. 2017;
# their peak learning rate is the paper's width ** -0.5 * warmup ** -0.5 (equation 3).
PRESETS: dict[str, dict[str, dict[str, Value]]] = {
    "tiny": {
        "tokenizer": {"vocab_size": 4000},
        "model": {
            "encoder_layers": 4,
            "decoder_layers": 4,
            "width": 128,
            "heads": 4,
            "feed_forward_width": 256,
            "dropout": 0.2,
        },
        "training": {
            "max_updates": 20_000,
            "max_tokens": 2048,
            "learn_rate": 3e-3,
            "lr_warmup": 1000,
        },
    },
    "small": {
        "tokenizer": {"vocab_size": 8000},
        "model": {"width": 256, "heads": 4, "feed_forward_width": 1024},
        "training": {"learn_rate": 1e-3, "lr_warmup": 2000},
    },
    "base": {
        "tokenizer": {"vocab_size": 37000, "model_type": "bpe"},
        "training": {
            "max_tokens": 25_000,
            "learn_rate": 512**-0.5 * 4000**-0.5,
            "clip_norm": 0.0,
            "ema_decay": 0.9999,
        },
    },
    "big": {
        "tokenizer": {"vocab_size": 37000, "model_type": "bpe"},
        "model": {"width": 1024, "heads": 16, "feed_forward_width": 4096, "dropout": 0.3},
        "training": {
            "max_updates": 300_000,
            "max_tokens": 25_000,
            "learn_rate": 1024**-0.5 * 4000**-0.5,
            "clip_norm": 0.0,
            "ema_decay": 0.9999,
        },
    },
}

# The preset of a run on the sample corpus: `tiny` with the values below. It is the default without
# training text, and refused with one.
SAMPLE = "sample"

# The changes to `tiny` for the sample corpus: a run of two minutes on two cores.
SAMPLE_RUN: dict[str, dict[str, Value]] = {
    "tokenizer": {"vocab_size": 2000},
    # Text from a grammar has no noise to memorize. Few layers leave time for more updates: what
    # *it* stands for is learned after 900 to 1,250 of them, rather suddenly. Products are so small
    # that a second thread gains little, and loses much where the other core is busy.
    "model": {"encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0},
    "training": {
        "max_updates": 2000,
        "max_tokens": 768,
        "lr_warmup": 300,
        "ema_decay": 0.99,
        "disp_freq": 100,
        "save_freq": 500,
        "cpu_threads": 1,
    },
    "validation": {"freq": 500},
}


def preset_values(name: str, section: str) -> dict[str, Value]:
    """Return the values of a section in a preset, or in the run on the sample corpus."""
    if name == SAMPLE:
        return {**PRESETS["tiny"].get(section, {}), **SAMPLE_RUN.get(section, {})}
    return PRESETS[name].get(section, {})
