"""Import a Marian directory, in the form in which OPUS-MT distributes models."""

# D model width, V pieces in the vocabulary file

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm_cli.config.settings import ModelConfig, RunConfig, SearchConfig
from tfm_cli.errors import ModelError
from tfm_cli.interop.marian.files import MAX_YAML_BYTES, NpzFile, parse_yaml
from tfm_cli.interop.source_files import (
    has_file,
    imported_setting,
    missing_files,
    quoted,
    read_source,
    source_file,
)
from tfm_cli.interop.tensors import (
    ImportedModel,
    assemble,
    raise_if_any,
    required_tensors,
)
from tfm_cli.model_directory.weight_shapes import weight_shapes
from tfm_cli.tokenizer.model_file import MAX_MODEL_BYTES
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

MODEL, DECODER = "special:model.yml", "decoder.yml"
POSITIONS = {"marian": "sinusoidal_marian", "halves": "sinusoidal_halves"}
_OUTPUT, _UNTRANSPOSED = "decoder_ff_logit_out_Wt", "decoder_ff_logit_out_W"
_OUTPUT_BIAS = "decoder_ff_logit_out_b"
_EMBEDDINGS = ("Wemb", "encoder_Wemb", "decoder_Wemb", _OUTPUT)
_TOKENIZERS = ("source.spm", "target.spm")
_END, _UNKNOWN = "</s>", "<unk>"
# Marian has no start token: the first input of its decoder is a zero vector. This vector becomes a
# piece at the end of the vocabulary, which is banned; the bias makes its probability negligible.
_STARTS = ("<pad>", "<start>")
_START_BIAS = -100.0


def read_marian(directory: Path, *, positions: str = "marian") -> ImportedModel:
    """Read a directory with an `.npz`, its vocabularies, and SentencePiece models.

    Args:
        directory: also contains `source.spm` and `target.spm`, and usually `decoder.yml`.
        positions: `marian` for the sinusoids that Marian itself computes, or `halves` for those
            that conversions to Hugging Face and CTranslate2 use instead.

    Raises:
        ModelError: a file is damaged or hostile, files are missing, or options or tensors are not
            supported; the message lists all problems.
        ResourceError: PyYAML is not installed.
    """
    problems: list[str] = []
    decoder = _decoder(directory)
    search = {} if decoder is None else search_settings(decoder, problems)
    weights_file = _weights_name(directory, decoder)
    vocabulary_files = _vocabulary_names(directory, decoder)
    problems += missing_files(directory, (weights_file, *vocabulary_files, *_TOKENIZERS))
    title = f"{directory}: cannot be imported"
    if not has_file(directory, weights_file):
        raise_if_any(problems, title)
    path = source_file(directory, weights_file)
    with NpzFile(path) as stored:
        content = stored.content(MODEL)
        options = parse_yaml(content.rstrip(b"\0"), f"{path}: {MODEL}")
        if not isinstance(options, dict):
            raise ModelError(f"{path}: {MODEL} is not a table of options")
        settings = model_settings(options, problems)
        pieces = _vocabularies(directory, vocabulary_files, options, problems)
        raise_if_any(problems, title)
        model = ModelConfig(**settings, positions=POSITIONS[positions])
        if model.width % 2:
            raise_if_any([f"{MODEL}: `dim-emb` must be even, got {model.width}"], title)
        weights, notes = _weights(stored, model, (len(pieces[0]), len(pieces[1])))
    tokenizers = _tokenizers(directory, pieces, bans_unknown=not allows_unknown(decoder or {}))
    run = dataclasses.replace(RunConfig(), model=model, search=SearchConfig(**search))
    notes = (*_notes(decoder, positions), *notes)
    return ImportedModel(run, tokenizers, weights, notes, weights_file, vocabulary_files)


def _decoder(directory: Path) -> dict[str, Any] | None:
    return _yaml_table(directory, DECODER) if has_file(directory, DECODER) else None


def _weights_name(directory: Path, decoder: dict[str, Any] | None) -> str:
    models = (decoder or {}).get("models")
    if models is not None:
        if not isinstance(models, list) or len(models) != 1 or not isinstance(models[0], str):
            raise ModelError(f"{directory / DECODER}: `models` is {models}, expected one name")
        return str(models[0])
    names = sorted(path.name for path in directory.glob("*.npz")
                   if not path.name.endswith(".optimizer.npz"))  # fmt: skip
    if len(names) != 1:
        listed = ", ".join(f"`{name}`" for name in names[:3]) or "none"
        hint = f"name the one to use under `models` in `{DECODER}`" if names else None
        raise ModelError(f"{directory}: expected one `.npz` file, got {listed}", hint=hint)
    return names[0]


def _yaml_table(directory: Path, name: str) -> dict[str, Any]:
    content = read_source(directory, name, max_bytes=MAX_YAML_BYTES)
    table = parse_yaml(content, str(directory / name))
    if not isinstance(table, dict):
        raise ModelError(f"{directory / name}: is not a table of names")
    return table


def _vocabularies(
    directory: Path, names: tuple[str, str], options: dict[str, Any], problems: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the pieces of source and target in the order of their ids; report faults."""
    pieces: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    sizes = options.get("dim-vocabs")
    if not isinstance(sizes, list) or len(sizes) != 2:
        problem = f"is {quoted(sizes)}, expected the sizes of both sides"
        problems.append(f"{MODEL}: `dim-vocabs` {problem}")
        sizes = ["0", "0"]  # 0 allows any size
    for name in filter(lambda name: has_file(directory, name), pieces):
        table = _yaml_table(directory, name)
        pieces[name] = _in_order(table)
        if len(pieces[name]) < len(table):
            expected = f"must have the ids 0 … {len(table) - 1}, each once"
            problems.append(f"{name}: {expected}: {_first_fault(table)}")
        else:
            problems += [f"{name}: has no `{p}`" for p in (_END, _UNKNOWN) if p not in table]
            for size, side in zip(sizes, names, strict=True):
                if side == name and size not in (str(len(table)), "0"):
                    problem = f"{name}: has {len(table)} pieces, expected {size} as in `dim-vocabs`"
                    if problem not in problems:
                        problems.append(problem)
    return pieces[names[0]], pieces[names[1]]


def _vocabulary_names(directory: Path, decoder: dict[str, Any] | None) -> tuple[str, str]:
    names = (decoder or {}).get("vocabs")
    if names is None:
        paths = sorted({*directory.glob("*vocab.yml"), *directory.glob("*vocab.yaml")})
        names = [path.name for path in paths]
        if len(names) == 2:  # the names must identify the source side
            names.sort(key=lambda name: "src" not in name and "source" not in name)
            if not any(mark in names[0] for mark in ("src", "source")):
                names = []
        names *= 2 if len(names) == 1 else 1
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(n, str) for n in names):
        raise ModelError(
            f"{directory}: expected a vocabulary for the source and one for the target",
            hint=f"name both under `vocabs` in `{DECODER}`",
        )
    return names[0], names[1]


def _in_order(table: dict[str, Any]) -> tuple[str, ...]:
    """Return the pieces by their ids if these are 0 … n - 1, each once; otherwise nothing."""
    by_id = {value: piece for piece, value in table.items() if isinstance(value, str)}
    ids = [str(number) for number in range(len(table))]
    return tuple(by_id[i] for i in ids) if all(i in by_id for i in ids) else ()


def _first_fault(table: dict[str, Any]) -> str:
    by_id: dict[str, str] = {}
    ids = {str(number) for number in range(len(table))}
    for piece, value in table.items():
        if not isinstance(value, str) or value not in ids:
            return f"`{piece}` has `{str(value)[:20]}`"
        if value in by_id:
            return f"`{piece}` and `{by_id[value]}` both have {value}"
        by_id[value] = piece
    return "an id has no piece"


def _weights(
    stored: NpzFile, model: ModelConfig, sizes: tuple[int, int]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights by tfm's names, with a row for the start piece in each vocabulary."""
    required = []
    for item in required_tensors(model, sizes, lambda name: name.marian):
        if item.name == _OUTPUT_BIAS and item.name not in stored.shapes:
            continue  # `output-omit-bias`
        if item.name == _OUTPUT and _UNTRANSPOSED in stored.shapes:
            item = dataclasses.replace(
                item, name=_UNTRANSPOSED, shape=item.shape[::-1], transposed=True
            )
        elif len(item.shape) == 1:
            item = dataclasses.replace(item, shape=(1, *item.shape), as_row=True)
        elif item.name not in _EMBEDDINGS:
            item = dataclasses.replace(item, shape=item.shape[::-1], transposed=True)
        required.append(item)
    ignored = [name for name in stored.shapes if name.startswith("special:")]
    weights, notes = assemble(
        required, stored.shapes, stored.load, source=str(stored.path), ignored=ignored
    )
    weights.setdefault("output_bias", torch.zeros(sizes[1]))
    for name, shape in weight_shapes(model, (sizes[0] + 1, sizes[1] + 1)).items():
        if weights[name].shape[0] < shape[0]:
            value = _START_BIAS if name == "output_bias" else 0.0
            row = torch.full((1, *shape[1:]), value)
            weights[name] = torch.cat((weights[name], row))
    return weights, notes


def _tokenizers(
    directory: Path, pieces: tuple[tuple[str, ...], tuple[str, ...]], *, bans_unknown: bool
) -> TokenizerPair:
    start = next(piece for piece in _STARTS if piece not in {*pieces[0], *pieces[1]})
    banned = (start, _UNKNOWN) if bans_unknown else (start,)
    sides = []
    for name, own in zip(_TOKENIZERS, pieces, strict=True):
        content = read_source(directory, name, max_bytes=MAX_MODEL_BYTES)
        vocabulary = Vocabulary((*own, start), _END, _UNKNOWN, start, banned, name=name)
        sides.append(Tokenizer(content, vocabulary, name=str(directory / name)))
    return TokenizerPair(sides[0], sides[1])


def _notes(decoder: dict[str, Any] | None, positions: str) -> list[str]:
    notes = []
    if decoder is None:
        notes.append(f"there is no `{DECODER}`: the search has tfm's default settings")
    elif decoder.get("shortlist"):
        notes.append("the shortlist is left out: every token may be written")
    if positions == "halves":
        notes.append("positions are those of conversions, not those that Marian itself computes")
    return notes


# The settings in the options inside a model, and in its `decoder.yml`

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
    model: dict[str, Any] = {"output_bias": True}
    for option, setting in _SHAPE.items():
        number = _number(options.get(option, _SHAPE_DEFAULTS.get(option)), whole=True)
        model |= imported_setting(ModelConfig, setting, number, f"{MODEL}: `{option}`", problems)
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
    # In Marian, each finished hypothesis narrows the beam, until it is empty.
    search: dict[str, Any] = {"early_stopping": True}
    for option, (setting, default) in _SEARCH.items():
        raw = options.get(option, default)
        if option == "normalize" and raw in ("true", "false"):
            raw = "1" if raw == "true" else "0"
        number = _number(raw, whole=setting == "beam_size")
        label = f"{DECODER}: `{option}`"
        search |= imported_setting(SearchConfig, setting, number, label, problems)
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
