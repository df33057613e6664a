"""The settings in the options inside a Marian model, and in its `decoder.yml`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfm_cli.config.settings import ModelConfig, SearchConfig
from tfm_cli.config.validation import coerce
from tfm_cli.interop.source_files import quoted

MODEL, DECODER = "special:model.yml", "decoder.yml"

_SHAPE = {
    "enc-depth": "encoder_layers",
    "dec-depth": "decoder_layers",
    "dim-emb": "width",
    "transformer-heads": "heads",
    "transformer-dim-ffn": "feed_forward_width",
    "transformer-decoder-dim-ffn": "decoder_feed_forward_width",  # 0: same as the encoder's
}
_SHAPE_DEFAULTS = {"transformer-decoder-dim-ffn": "0"}  # an option that older models lack
_SEARCH = {
    "beam-size": ("beam_size", "12"),
    "normalize": ("length_penalty", "0"),
    "max-length-factor": ("max_length_factor", "3"),
}
_ACTIVATIONS = ("swish", "relu")

# Options that change the computation, with the values that leave it unchanged.
_OFF: tuple[object, ...] = ("false", "0", "", "no", "off", [], None)
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "type": ("transformer",),
    "transformer-decoder-autoreg": ("self-attention", None),
    "transformer-ffn-depth": ("2", None),
    "transformer-decoder-ffn-depth": ("0", "2", None),
    "transformer-attention-mask": ("default", "", None),
    "transformer-guided-alignment-layer": (),  # any: alignments do not affect translations
    "transformer-dim-aan": (),
    "transformer-aan-activation": (),
    "transformer-aan-depth": (),
    "transformer-aan-nogate": (),
    "transformer-depth-scaling": (),  # affects only the initialization
    "transformer-rnn-projection": (),
    "factors-combine": (),
    "output-omit-bias": (),
    "input-types": (*_OFF, ["sequence"], ["sequence", "sequence"]),
    "right-left": _OFF,
    "char-stride": (),
    "char-highway": (),
    "char-conv-filters-num": (),
    "char-conv-filters-widths": (),
}
_ANY = ("transformer-preprocess", "transformer-postprocess", "transformer-postprocess-emb",
        "transformer-postprocess-top", "transformer-ffn-activation", "transformer-dim-ffn",
        "transformer-heads", "transformer-decoder-dim-ffn", "embedding-fix-src",
        "embedding-fix-trg", "embedding-normalization")  # fmt: skip
# Unlisted options with these prefixes must be off.
_GUARDED = ("transformer-", "factors-", "lemma-", "output-", "ulr", "embedding-")
_NEUTRAL_DECODER: dict[str, tuple[object, ...]] = {
    "word-penalty": (0.0,),
    "output-sampling": _OFF,
    "force-decode": _OFF,
    "weights": (["1"], ["1.0"], None, []),
}


def model_settings(options: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the settings of ModelConfig except positions and output_bias.

    Args:
        options: of a Marian model.
        problems: receives a line for each option that is invalid or not supported.
    """
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    model: dict[str, Any] = {"output_bias": True}
    for theirs, ours in _SHAPE.items():
        number = _number(options.get(theirs, _SHAPE_DEFAULTS.get(theirs)), whole=True)
        value, problem = coerce(number, fields[ours].type, fields[ours].metadata)
        if problem:
            problems.append(f"{MODEL}: `{theirs}` {problem}")
        else:
            model[ours] = value
    if model.get("width", 0) % model.get("heads", 1):
        problems.append(f"{MODEL}: `transformer-heads` must divide `dim-emb`")
    model["norm"] = _norm(options, problems)
    activation = options.get("transformer-ffn-activation", "swish")
    if activation in _ACTIVATIONS:
        model["activation"] = activation
    else:
        problem = f"is {quoted(activation)}, expected `swish` or `relu`"
        if activation == "gelu":
            problem += " (Marian's is x · sigmoid(1.702 x))"
        problems.append(f"{MODEL}: `transformer-ffn-activation` {problem}")
    ties = {name: _is_on(options.get(name)) for name in
            ("tied-embeddings", "tied-embeddings-src", "tied-embeddings-all")}  # fmt: skip
    source_is_tied = ties["tied-embeddings-all"] or ties["tied-embeddings-src"]
    output_is_tied = ties["tied-embeddings-all"] or ties["tied-embeddings"]
    model["tied_embeddings"] = source_is_tied + 2 * output_is_tied

    for name in sorted({*_NEUTRAL, *(n for n in options if n.startswith(_GUARDED))} - set(_ANY)):
        neutral = _NEUTRAL.get(name, _OFF)
        if neutral and options.get(name) not in neutral:
            problems.append(f"{MODEL}: `{name}` is {quoted(options.get(name))}{_expected(neutral)}")
    return model


def _norm(options: Mapping[str, Any], problems: list[str]) -> str:
    """Return `pre` or `post`, by the operations around each sub-layer; d is dropout."""
    names = ("transformer-preprocess", "transformer-postprocess", "transformer-postprocess-top",
             "transformer-postprocess-emb")  # fmt: skip
    defaults = ("", "dan", "", "d")
    values = [options.get(name, default) for name, default in zip(names, defaults, strict=True)]
    steps = [value.replace("d", "") if isinstance(value, str) else "?" for value in values]
    kinds = {("", "an", "", ""): "post", ("n", "a", "n", ""): "pre"}
    kind = kinds.get(tuple(steps))  # type: ignore[arg-type]  # there are four steps
    if kind is None:
        listed = ", ".join(f"`{n}` {quoted(v)}" for n, v in zip(names, values, strict=True))
        expected = "expected ``, `dan`, ``, `d` or `n`, `da`, `n`, `d`"
        problems.append(f"{MODEL}: has unsupported layer norms: {listed}; {expected}")
    return kind or "post"


def search_settings(options: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the settings of SearchConfig in `decoder.yml`, with Marian's defaults.

    Args:
        options: the content of `decoder.yml`.
        problems: receives a line for each option that is invalid or not supported.
    """
    fields = {field.name: field for field in dataclasses.fields(SearchConfig)}
    # In Marian, each finished hypothesis narrows the beam, until it is empty.
    search: dict[str, Any] = {"early_stopping": True}
    for theirs, (ours, default) in _SEARCH.items():
        raw = options.get(theirs, default)
        if theirs == "normalize" and raw in ("true", "false"):
            raw = "1" if raw == "true" else "0"
        number = _number(raw, whole=fields[ours].type is int)
        value, problem = coerce(number, fields[ours].type, fields[ours].metadata)
        if problem:
            problems.append(f"{DECODER}: `{theirs}` {problem}")
        else:
            search[ours] = value
    for name, neutral in _NEUTRAL_DECODER.items():
        value = options.get(name)
        if value is not None and value not in neutral and _number(value) not in neutral:
            problems.append(f"{DECODER}: `{name}` is {quoted(value)}{_expected(neutral)}")
    return search


def allows_unknown(options: Mapping[str, Any]) -> bool:
    """Return True if the decoder may generate <unk>, which is not Marian's default."""
    return _is_on(options.get("allow-unk"))


def _is_on(value: object) -> bool:
    return isinstance(value, str) and value.lower() in ("true", "yes", "on", "1")


def _number(value: object, *, whole: bool = False) -> object:
    """Return the number that a string represents, or the value itself if it represents none."""
    if isinstance(value, str):
        try:
            return int(value) if whole else float(value)
        except ValueError:
            return value
    return value


def _expected(neutral: tuple[object, ...]) -> str:
    return ", expected it to be off" if neutral is _OFF else f", expected {quoted(neutral[0])}"
