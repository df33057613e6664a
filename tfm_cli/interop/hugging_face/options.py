"""The settings in `config.json` and `generation_config.json` of a Hugging Face Marian model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfm_cli.config.settings import ModelConfig, SearchConfig
from tfm_cli.interop.source_files import imported_setting, quoted

CONFIG, GENERATION = "config.json", "generation_config.json"
_REQUIRED = object()  # as a default: the value must be present

_DEFAULT_MAX_LENGTH = 20  # `transformers` treats this value as no limit
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}

# The position encodings of exported models; `sinusoidal` is exported with permuted dimensions.
_POSITIONS = ("sinusoidal", "sinusoidal_halves", "sinusoidal_marian")

# The options of Hugging Face, with the settings of tfm and the defaults of Hugging Face.
_MODEL = {
    "encoder_layers": ("encoder_layers", _REQUIRED),
    "decoder_layers": ("decoder_layers", _REQUIRED),
    "d_model": ("width", _REQUIRED),
    "encoder_attention_heads": ("heads", _REQUIRED),
    "encoder_ffn_dim": ("feed_forward_width", _REQUIRED),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
    "activation_dropout": ("activation_dropout", 0.0),
    "scale_embedding": ("scale_embeddings", False),
}
# Checked with the bounds of the encoder's settings, since those of the decoder also allow 0.
_DECODER = {
    "decoder_attention_heads": ("heads", _REQUIRED),
    "decoder_ffn_dim": ("feed_forward_width", _REQUIRED),
}
_SEARCH = {
    "num_beams": ("beam_size", 1),
    "length_penalty": ("length_penalty", 1.0),
    "early_stopping": ("early_stopping", False),
    "renormalize_logits": ("renormalize", False),
    "no_repeat_ngram_size": ("no_repeat_ngram_size", 0),
}

# Options that change the computation, with the values that leave it unchanged.
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
# Aliases; if both names are present, `transformers` uses the one that comes last.
_ALIASES = {
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
}
_TRAINING_ONLY = ("encoder_layerdrop", "decoder_layerdrop")


@dataclass(frozen=True, slots=True)
class PieceId:
    """The id of a piece, and the option that names it."""

    value: int
    option: str  # such as "config.json: `eos_token_id`"


@dataclass(frozen=True, slots=True)
class Options:
    """The content of the two files as settings of tfm; ids are those of the target side.

    A value is None if it is invalid; the problem has been reported.
    """

    model: dict[str, Any]  # settings of ModelConfig except positions and output_bias
    search: dict[str, Any]  # settings of SearchConfig
    vocab_sizes: tuple[int | None, int | None]  # of source and target
    eos: PieceId | None
    start: PieceId | None
    pad_id: int | None
    banned: tuple[PieceId, ...]
    positions: str  # one of _POSITIONS
    notes: tuple[str, ...]


def read_options(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, problems: list[str]
) -> Options:
    """Return the settings in the two files.

    Args:
        config: `config.json`.
        generation: `generation_config.json`; None in old models, which have all in `config.json`.
        problems: receives a line for each option that is invalid or not supported.
    """
    reader = _OptionsReader(config, generation, problems)
    model = reader.settings(ModelConfig, _MODEL, config, CONFIG)
    decoder = reader.settings(ModelConfig, _DECODER, config, CONFIG)
    search = reader.settings(SearchConfig, _SEARCH, reader.search, reader.search_file)
    reader.check_neutral(config, _NEUTRAL, CONFIG)
    reader.check_neutral(reader.search, _NEUTRAL_GENERATION, reader.search_file)
    reader.check_forced_end()
    for alias, name in _ALIASES.items():
        if alias in config and config[alias] != config.get(name):
            problem = f"is {quoted(config[alias])}, but `{name}` is {quoted(config.get(name))}"
            problems.append(f"{CONFIG}: `{alias}` {problem}")
    for side, stack in (("encoder", model), ("decoder", decoder)):
        if model.get("width", 0) % stack.get("heads", 1):
            problems.append(f"{CONFIG}: `{side}_attention_heads` must divide `d_model`")
    model |= {f"decoder_{name}": value for name, value in decoder.items()}

    activation = config.get("activation_function")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        expected = ", ".join(f"`{name}`" for name in _ACTIVATIONS)
        problem = f"is {quoted(activation)}, expected one of {expected}"
        problems.append(f"{CONFIG}: `activation_function` {problem}")
    else:
        model["activation"] = _ACTIVATIONS[activation]
    shared = reader.flag("share_encoder_decoder_embeddings", default=True)
    model["tied_embeddings"] = shared + 2 * reader.flag("tie_word_embeddings", default=True)

    positions = config.get("tfm_positions", "sinusoidal_halves")
    if positions not in _POSITIONS:
        expected = ", ".join(f"`{kind}`" for kind in _POSITIONS)
        problem = f"is {quoted(positions)}, expected one of {expected}"
        problems.append(f"{CONFIG}: `tfm_positions` {problem}")
    has_own_size = config.get("decoder_vocab_size") is not None
    source_size = reader.vocab_size("vocab_size")
    target_size = reader.vocab_size("decoder_vocab_size") if has_own_size else source_size
    eos = reader.piece_id("eos_token_id")
    notes = []
    for name in _TRAINING_ONLY:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            problems.append(f"{CONFIG}: `{name}` must be a number, got {quoted(value)}")
        elif value:
            notes.append(f"`{name}` of {quoted(value)} is for training only and left out")
    return Options(
        model,
        search,
        (source_size, target_size),
        eos,
        reader.piece_id("decoder_start_token_id"),
        config.get("pad_token_id"),
        reader.banned(eos),
        str(positions),
        (*notes, *reader.length_notes(SearchConfig().max_length_factor)),
    )


class _OptionsReader:
    """A reader of values from the two files, which adds each problem to `problems`."""

    def __init__(
        self,
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None,
        problems: list[str],
    ) -> None:
        self.config = config
        self.generation = generation
        self.problems = problems
        self.search = config if generation is None else generation
        self.search_file = CONFIG if generation is None else GENERATION

    def settings(
        self, section: type, table: Mapping[str, tuple[str, object]], values: Mapping[str, Any],
        file: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Return settings of a section of the run configuration, validated as usual."""
        settings: dict[str, Any] = {}
        for name, (setting, default) in table.items():
            value = values.get(name)
            if value is None:
                value = default
            if value is _REQUIRED:
                self.problems.append(f"{file}: `{name}` is missing")
                continue
            label = f"{file}: `{name}`"
            settings |= imported_setting(section, setting, value, label, self.problems)
        return settings

    def check_neutral(
        self, values: Mapping[str, Any], table: Mapping[str, tuple[object, ...]], file: str
    ) -> None:
        """Report each option whose value would change the computation."""
        for name, neutral in table.items():
            value = values.get(name)
            if value is None and name != "model_type":
                continue
            if not any(value == other and _is_bool(value) == _is_bool(other) for other in neutral):
                expected = quoted(neutral[0]) if neutral else "none"
                self.problems.append(f"{file}: `{name}` is {quoted(value)}, expected {expected}")

    def check_forced_end(self) -> None:
        """Report a token other than </s> that is forced at the length limit."""
        eos = (self.search.get("eos_token_id"), self.config.get("eos_token_id"))
        forced = self.search.get("forced_eos_token_id")
        if forced is not None and _single(forced) not in map(_single, eos):
            problem = f"is {quoted(forced)}, expected `eos_token_id`"
            self.problems.append(f"{self.search_file}: `forced_eos_token_id` {problem}")

    def flag(self, name: str, *, default: bool) -> bool:
        """Return the value of a boolean option."""
        value = self.config.get(name, default)
        if not isinstance(value, bool):
            problem = f"must be true or false, got {quoted(value)}"
            self.problems.append(f"{CONFIG}: `{name}` {problem}")
        return bool(value)

    def vocab_size(self, name: str) -> int | None:
        """Return the size of a vocabulary; None if it is invalid."""
        value = self.config.get(name)
        if type(value) is not int or not 2 <= value <= 1_000_000:
            problem = f"must be between 2 and 1000000, got {quoted(value)}"
            self.problems.append(f"{CONFIG}: `{name}` {problem}")
            return None
        return value

    def piece_id(self, name: str) -> PieceId | None:
        """Return the id of a special piece; the two files must not contradict each other."""
        found = []
        before = len(self.problems)
        for file, table in ((GENERATION, self.generation or {}), (CONFIG, self.config)):
            value = _single(table.get(name))
            if value is None:
                continue
            if type(value) is not int or value < 0:
                self.problems.append(f"{file}: `{name}` is {quoted(value)}, expected one id")
            else:
                found.append((file, PieceId(value, f"{file}: `{name}`")))
        if len({piece_id.value for _, piece_id in found}) > 1:
            values = " and ".join(f"{piece_id.value} in {file}" for file, piece_id in found)
            self.problems.append(f"`{name}` is {values}")
        if not found and len(self.problems) == before:
            self.problems.append(f"{CONFIG}: `{name}` is missing")
        return found[0][1] if found and len(self.problems) == before else None

    def banned(self, eos: PieceId | None) -> tuple[PieceId, ...]:
        """Return the ids that are never generated; </s> is excluded, as in Hugging Face."""
        ids: dict[int, PieceId] = {}
        for name, in_lists in (("bad_words_ids", True), ("suppress_tokens", False)):
            option = f"{self.search_file}: `{name}`"
            words = self.search.get(name) or []
            for word in words if isinstance(words, list) else [words]:
                word = _single(word) if in_lists else word
                if type(word) is not int:
                    self.problems.append(f"{option} has {quoted(word)}, expected single ids")
                elif eos is None or word != eos.value:
                    ids.setdefault(word, PieceId(word, option))
        return tuple(ids.values())

    def length_notes(self, factor: float) -> list[str]:
        """Return a note on the length limit, which in tfm depends on the source."""
        for name, extra in (("max_new_tokens", 0), ("max_length", 1)):  # the first has precedence
            value = self.search.get(name)
            if type(value) is int and (name, value) != ("max_length", _DEFAULT_MAX_LENGTH):
                return [
                    f"`{name}` of {quoted(value)} is left out: there, translations may have "
                    f"{value - extra} tokens; here, {factor:g} for each source token plus 10"
                ]
        return []


def _single(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)
