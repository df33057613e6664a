"""What the options inside a Marian model, and its `decoder.yml`, ask for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfm_cli.config.settings import ModelConfig, SearchConfig
from tfm_cli.config.validation import coerce

MODEL, DECODER = "special:model.yml", "decoder.yml"

_SHAPE = {
    "enc-depth": "encoder_layers",
    "dec-depth": "decoder_layers",
    "dim-emb": "width",
    "transformer-heads": "heads",
    "transformer-dim-ffn": "feed_forward_width",
    "transformer-decoder-dim-ffn": "decoder_feed_forward_width",  # 0 for that of the encoder, too
}
_LATER = {"transformer-decoder-dim-ffn": "0"}  # older models lack what came later
_SEARCH = {
    "beam-size": ("beam_size", "12"),
    "normalize": ("length_penalty", "0"),
    "max-length-factor": ("max_length_factor", "3"),
}
_ACTIVATIONS = ("swish", "relu")

# Options that change what is computed, with the values under which nothing changes.
_OFF: tuple[object, ...] = ("false", "0", "", "no", "off", [], None)
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "type": ("transformer",),
    "transformer-decoder-autoreg": ("self-attention", None),
    "transformer-ffn-depth": ("2", None),
    "transformer-decoder-ffn-depth": ("0", "2", None),
    "transformer-attention-mask": ("default", "", None),
    "transformer-guided-alignment-layer": (),  # any: alignments change no translation
    "transformer-dim-aan": (),
    "transformer-aan-activation": (),
    "transformer-aan-depth": (),
    "transformer-aan-nogate": (),
    "transformer-depth-scaling": (),  # of fresh weights only
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
# What begins so and is not told of above must be off.
_GUARDED = ("transformer-", "factors-", "lemma-", "output-", "ulr", "embedding-")
_NEUTRAL_DECODER: dict[str, tuple[object, ...]] = {
    "word-penalty": (0.0,),
    "output-sampling": _OFF,
    "force-decode": _OFF,
    "weights": (["1"], ["1.0"], None, []),
}


def model_settings(options: Mapping[str, Any], complaints: list[str]) -> dict[str, Any]:
    """Settings of ModelConfig but positions and output_bias; complains of what cannot be had."""
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    model: dict[str, Any] = {"output_bias": True}
    for theirs, ours in _SHAPE.items():
        number = _number(options.get(theirs, _LATER.get(theirs)), whole=True)
        value, complaint = coerce(number, fields[ours].type, fields[ours].metadata)
        if complaint:
            complaints.append(f"{MODEL}: `{theirs}` {complaint}")
        else:
            model[ours] = value
    if model.get("width", 0) % model.get("heads", 1):
        complaints.append(f"{MODEL}: `transformer-heads` must divide `dim-emb`")
    model["norm"] = _norm(options, complaints)
    activation = options.get("transformer-ffn-activation", "swish")
    if activation in _ACTIVATIONS:
        model["activation"] = activation
    else:
        told = f"is {_shown(activation)}, wanted `swish` or `relu`"
        if activation == "gelu":
            told += " (Marian's is x · sigmoid(1.702 x))"
        complaints.append(f"{MODEL}: `transformer-ffn-activation` {told}")
    ties = {name: _is_on(options.get(name)) for name in
            ("tied-embeddings", "tied-embeddings-src", "tied-embeddings-all")}  # fmt: skip
    source_is_tied = ties["tied-embeddings-all"] or ties["tied-embeddings-src"]
    output_is_tied = ties["tied-embeddings-all"] or ties["tied-embeddings"]
    model["tied_embeddings"] = source_is_tied + 2 * output_is_tied

    for name in sorted({*_NEUTRAL, *(n for n in options if n.startswith(_GUARDED))} - set(_ANY)):
        neutral = _NEUTRAL.get(name, _OFF)
        if neutral and options.get(name) not in neutral:
            complaints.append(f"{MODEL}: `{name}` is {_shown(options.get(name))}{_wanted(neutral)}")
    return model


def _norm(options: Mapping[str, Any], complaints: list[str]) -> str:
    """Where layers are normalised, read from what is done before and after each; d is dropout."""
    names = ("transformer-preprocess", "transformer-postprocess", "transformer-postprocess-top",
             "transformer-postprocess-emb")  # fmt: skip
    defaults = ("", "dan", "", "d")
    found = [options.get(name, default) for name, default in zip(names, defaults, strict=True)]
    steps = [value.replace("d", "") if isinstance(value, str) else "?" for value in found]
    kinds = {("", "an", "", ""): "post", ("n", "a", "n", ""): "pre"}
    kind = kinds.get(tuple(steps))  # type: ignore[arg-type]  # four steps, as the names are
    if kind is None:
        told = ", ".join(f"`{n}` {_shown(v)}" for n, v in zip(names, found, strict=True))
        wanted = "wanted ``, `dan`, ``, `d` or `n`, `da`, `n`, `d`"
        complaints.append(f"{MODEL}: normalises elsewhere: {told}; {wanted}")
    return kind or "post"


def search_settings(options: Mapping[str, Any], complaints: list[str]) -> dict[str, Any]:
    """Settings of SearchConfig from `decoder.yml`; what it leaves out is as Marian has it."""
    fields = {field.name: field for field in dataclasses.fields(SearchConfig)}
    # Each translation that ends narrows Marian's beam, until none is left.
    search: dict[str, Any] = {"early_stopping": True}
    for theirs, (ours, default) in _SEARCH.items():
        raw = options.get(theirs, default)
        if theirs == "normalize" and raw in ("true", "false"):
            raw = "1" if raw == "true" else "0"
        number = _number(raw, whole=fields[ours].type is int)
        value, complaint = coerce(number, fields[ours].type, fields[ours].metadata)
        if complaint:
            complaints.append(f"{DECODER}: `{theirs}` {complaint}")
        else:
            search[ours] = value
    for name, neutral in _NEUTRAL_DECODER.items():
        value = options.get(name)
        if value is not None and value not in neutral and _number(value) not in neutral:
            complaints.append(f"{DECODER}: `{name}` is {_shown(value)}{_wanted(neutral)}")
    return search


def allows_unknown(options: Mapping[str, Any]) -> bool:
    """Whether a decoder may write the unknown piece; by itself Marian does not."""
    return _is_on(options.get("allow-unk"))


def _is_on(value: object) -> bool:
    return isinstance(value, str) and value.lower() in ("true", "yes", "on", "1")


def _number(value: object, *, whole: bool = False) -> object:
    """The number that a string spells; what spells none is given back."""
    if isinstance(value, str):
        try:
            return int(value) if whole else float(value)
        except ValueError:
            return value
    return value


def _wanted(neutral: tuple[object, ...]) -> str:
    return ", wanted it off" if neutral is _OFF else f", wanted {_shown(neutral[0])}"


def _shown(value: object) -> str:
    text = "missing" if value is None else f"`{value}`"
    return text if len(text) <= 60 else f"{text[:60]}…"
