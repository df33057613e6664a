"""Presets: model shapes with a training recipe, their choice by the text, and the sample run."""

import math
from typing import NamedTuple

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


# The choice among the presets by the text, which is the default.
AUTO = "auto"


class Recipe(NamedTuple):
    """A preset with changes, for a corpus of up to some number of pairs."""

    max_pairs: float
    preset: str
    changes: dict[str, dict[str, Value]]
    reason: str


# On a CPU. The rows for 50,000 and 300,000 pairs were measured with 29,000 and 100,000, see
# docs/experiments.md; the others are the usual sizes for so much text, as far as a CPU trains them.
CPU_RECIPES = (
    Recipe(
        10_000,
        "tiny",
        {
            "tokenizer": {"vocab_size": 2000},
            "model": {"dropout": 0.3},
            "training": {"max_tokens": 1024, "lr_warmup": 300},
        },
        "little text needs a small vocabulary and more dropout",
    ),
    Recipe(
        50_000,
        "tiny",
        {"training": {"max_tokens": 1024, "lr_warmup": 300}},
        "a small model learns the most in the first hours of a few cores",
    ),
    Recipe(
        300_000,
        "tiny",
        {"model": {"dropout": 0.1}, "training": {"max_tokens": 1024, "lr_warmup": 300}},
        "a small model learns the most in the first hours of a few cores",
    ),
    Recipe(math.inf, "small", {}, "so much text is worth a larger model, and days of a CPU"),
)
# On a GPU, by published recipes for corpora of that size; none was measured.
GPU_RECIPES = (
    Recipe(10_000, "tiny", CPU_RECIPES[0].changes, CPU_RECIPES[0].reason),
    Recipe(
        50_000,
        "tiny",
        {"model": {"dropout": 0.3}},
        "a larger model would memorize so little text",
    ),
    Recipe(
        1_000_000,
        "small",
        {"model": {"dropout": 0.3}, "training": {"max_tokens": 4096}},
        "a larger model would need more text",
    ),
    Recipe(20_000_000, "base", {}, "the size that Vaswani et al. trained on 4.5 million pairs"),
    Recipe(math.inf, "big", {}, "the size that Vaswani et al. trained on 36 million pairs"),
)
SHARE_OF_WARMUP = 0.2  # of a run whose number of updates is given, at most


def recipe_for(pairs: int, *, has_gpu: bool) -> Recipe:
    """Return the recipe for training text of so many pairs."""
    recipes = GPU_RECIPES if has_gpu else CPU_RECIPES
    return next(recipe for recipe in recipes if pairs <= recipe.max_pairs)
