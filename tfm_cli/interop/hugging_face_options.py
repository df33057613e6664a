"""What `config.json` and `generation_config.json` of a Hugging Face Marian model ask for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfm_cli.config import ModelConfig, SearchConfig
from tfm_cli.configcheck import coerce

CONFIG, GENERATION = "config.json", "generation_config.json"

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}

# What an export of ours says it had; the first has its width permuted there.
_POSITIONS = ("sinusoidal", "sinusoidal_halves", "sinusoidal_marian")

# What a name of theirs is called here, and what it is where a file does not say.
_MISSING = object()
_MODEL = {
    "encoder_layers": ("encoder_layers", _MISSING),
    "decoder_layers": ("decoder_layers", _MISSING),
    "d_model": ("width", _MISSING),
    "encoder_attention_heads": ("heads", _MISSING),
    "encoder_ffn_dim": ("feed_forward_width", _MISSING),
    "dropout": ("dropout", 0.1),
    "scale_embedding": ("scale_embeddings", False),
}
_SEARCH = {
    "num_beams": ("beam_size", 1),
    "length_penalty": ("length_penalty", 1.0),
    "early_stopping": ("early_stopping", False),
    "renormalize_logits": ("renormalize", False),
    "no_repeat_ngram_size": ("no_repeat_ngram_size", 0),
}

# Options that change what is computed, and the only values under which they do not.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "model_type": ("marian",),
    "architectures": (["MarianMTModel"],),
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "normalize_before": (False,),
    "normalize_embedding": (False,),
    "add_final_layer_norm": (False,),
    "static_position_embeddings": (True,),
    "do_blenderbot_90_layernorm": (False,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "auto_map": (),
}
_NEUTRAL_GENERATION: dict[str, tuple[object, ...]] = {
    "forced_bos_token_id": (),
    "encoder_no_repeat_ngram_size": (0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "do_sample": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "exponential_decay_length_penalty": (),
    "begin_suppress_tokens": ([],),
    "forced_decoder_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "dola_layers": (),
    "token_healing": (False,),
}
# Other names for the same, of which `transformers` would take the one that stands last.
_ALIASES = {
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
}
_TRAINING_ONLY = ("attention_dropout", "activation_dropout", "encoder_layerdrop",
                  "decoder_layerdrop")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """What the two files say, in our words; ids are of the target side."""

    model: dict[str, Any]  # settings of ModelConfig but positions and output_bias
    search: dict[str, Any]  # settings of SearchConfig
    vocab_sizes: tuple[int, int]  # of source and target
    eos_id: int
    start_id: int
    pad_id: int | None
    banned_ids: tuple[int, ...]
    positions: str  # what an export of ours had; "sinusoidal" has its width permuted there
    notes: tuple[str, ...]


def read_options(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, complaints: list[str]
) -> Options:
    """What the files ask for; all that is not supported is added to `complaints`.

    Args:
        config: `config.json`.
        generation: `generation_config.json`; None where there is none, as in old models, whose
            `config.json` says it all.
        complaints: gets a line for each option that cannot be had.
    """
    reader = _Reader(config, generation, complaints)
    model = reader.settings(ModelConfig, _MODEL, config, CONFIG)
    search = reader.settings(SearchConfig, _SEARCH, reader.search, reader.search_file)
    reader.check_neutral(config, _NEUTRAL, CONFIG)
    reader.check_neutral(reader.search, _NEUTRAL_GENERATION, reader.search_file)
    for ours, theirs in (("encoder_attention_heads", "decoder_attention_heads"),
                         ("encoder_ffn_dim", "decoder_ffn_dim")):  # fmt: skip
        if config.get(ours) != config.get(theirs):
            told = f"is {_shown(config.get(theirs))}, but `{ours}` is {_shown(config.get(ours))}"
            complaints.append(f"{CONFIG}: `{theirs}` {told}")
    for alias, name in _ALIASES.items():
        if alias in config and config[alias] != config.get(name):
            told = f"is {_shown(config[alias])}, but `{name}` is {_shown(config.get(name))}"
            complaints.append(f"{CONFIG}: `{alias}` {told}")
    width, heads = model.get("width", 0), model.get("heads", 1)
    if width % heads:
        complaints.append(f"{CONFIG}: `encoder_attention_heads` must divide `d_model`")

    activation = config.get("activation_function")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        wanted = ", ".join(f"`{name}`" for name in _ACTIVATIONS)
        told = f"is {_shown(activation)}, wanted one of {wanted}"
        complaints.append(f"{CONFIG}: `activation_function` {told}")
    else:
        model["activation"] = _ACTIVATIONS[activation]
    shared = reader.flag("share_encoder_decoder_embeddings", default=True)
    model["tied_embeddings"] = shared + 2 * reader.flag("tie_word_embeddings", default=True)

    positions = config.get("tfm_positions", "sinusoidal_halves")
    if positions not in _POSITIONS:
        wanted = ", ".join(f"`{kind}`" for kind in _POSITIONS)
        told = f"is {_shown(positions)}, wanted one of {wanted}"
        complaints.append(f"{CONFIG}: `tfm_positions` {told}")
    source_size = reader.count("vocab_size", config.get("vocab_size"))
    target_size = config.get("decoder_vocab_size")
    eos_id = reader.the_id("eos_token_id")
    return Options(
        model,
        search,
        (source_size, source_size if target_size is None
         else reader.count("decoder_vocab_size", target_size)),
        eos_id,
        reader.the_id("decoder_start_token_id"),
        config.get("pad_token_id"),
        reader.banned(eos_id),
        str(positions),
        tuple(reader.notes()),
    )  # fmt: skip


class _Reader:
    """Asks the two files for values; what is wrong with them is added to the complaints."""

    def __init__(
        self,
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None,
        complaints: list[str],
    ) -> None:
        self.config = config
        self.generation = generation
        self.complaints = complaints
        self.search = config if generation is None else generation
        self.search_file = CONFIG if generation is None else GENERATION

    def settings(
        self, section: type, table: Mapping[str, tuple[str, object]], values: Mapping[str, Any],
        file: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Settings of a section of ours, checked as our own are."""
        fields = {f.name: f for f in dataclasses.fields(section)}
        found = {}
        for theirs, (ours, default) in table.items():
            value = values.get(theirs)
            if value is None:
                value = default
            if value is _MISSING:
                self.complaints.append(f"{file}: `{theirs}` is missing")
                continue
            coerced, complaint = coerce(value, fields[ours].type, fields[ours].metadata)
            if complaint:
                self.complaints.append(f"{file}: `{theirs}` {complaint}")
            else:
                found[ours] = coerced
        return found

    def check_neutral(
        self, values: Mapping[str, Any], table: Mapping[str, tuple[object, ...]], file: str
    ) -> None:
        """Complain of each option that has another value than those under which it is nothing."""
        for name, neutral in table.items():
            value = values.get(name)
            if value is None and name != "model_type":
                continue
            if not any(value == other and _is_bool(value) == _is_bool(other) for other in neutral):
                wanted = _shown(neutral[0]) if neutral else "none"
                self.complaints.append(f"{file}: `{name}` is {_shown(value)}, wanted {wanted}")
        eos = (self.search.get("eos_token_id"), self.config.get("eos_token_id"))
        forced = self.search.get("forced_eos_token_id")
        if (
            table is _NEUTRAL_GENERATION
            and forced is not None
            and _single(forced) not in map(_single, eos)
        ):
            told = f"is {_shown(forced)}, wanted `eos_token_id`"
            self.complaints.append(f"{file}: `forced_eos_token_id` {told}")

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self.config.get(name, default)
        if not isinstance(value, bool):
            told = f"must be true or false, got {_shown(value)}"
            self.complaints.append(f"{CONFIG}: `{name}` {told}")
        return bool(value)

    def count(self, name: str, value: object) -> int:
        """A number of pieces."""
        if type(value) is not int or not 2 <= value <= 1_000_000:
            told = f"must be between 2 and 1000000, got {_shown(value)}"
            self.complaints.append(f"{CONFIG}: `{name}` {told}")
            return 2
        return value

    def the_id(self, name: str) -> int:
        """The one id of a role; the two files must not contradict each other."""
        found = {}
        for file, table in ((GENERATION, self.generation or {}), (CONFIG, self.config)):
            value = _single(table.get(name))
            if value is None:
                continue
            if type(value) is not int or value < 0:
                told = f"is {_shown(value)}, wanted one id"
                self.complaints.append(f"{file}: `{name}` {told}")
            else:
                found[file] = value
        if len(set(found.values())) > 1:
            told = " and ".join(f"{value} in {file}" for file, value in found.items())
            self.complaints.append(f"`{name}` is {told}")
        if not found and not any(f"`{name}`" in complaint for complaint in self.complaints):
            self.complaints.append(f"{CONFIG}: `{name}` is missing")
        return next(iter(found.values()), 0)

    def banned(self, eos_id: int) -> tuple[int, ...]:
        """Ids that are never written; the end is never one of them, as with Hugging Face."""
        ids = []
        for name, in_lists in (("bad_words_ids", True), ("suppress_tokens", False)):
            words = self.search.get(name) or []
            for word in words if isinstance(words, list) else [words]:
                word = _single(word) if in_lists else word
                if type(word) is not int:
                    told = f"has {_shown(word)}, wanted single ids"
                    self.complaints.append(f"{self.search_file}: `{name}` {told}")
                elif word != eos_id:
                    ids.append(word)
        return tuple(dict.fromkeys(ids))

    def notes(self) -> list[str]:
        """What a user should know, though no translation depends on it."""
        return [
            f"`{name}` of {_shown(self.config[name])} is for training only and left out"
            for name in _TRAINING_ONLY
            if self.config.get(name)
        ]


def _single(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _shown(value: object) -> str:
    if value is None:
        return "missing"
    text = str(value).lower() if isinstance(value, bool) else f"`{value}`"
    return text if len(text) <= 60 else f"{text[:60]}…"
