"""The tokenizers of a Hugging Face Marian directory, converted to a TokenizerPair."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfm_cli.errors import ModelError
from tfm_cli.interop.hugging_face.options import Options
from tfm_cli.interop.source_files import (
    has_file,
    missing_files,
    quoted,
    read_json,
    read_source,
)
from tfm_cli.model_directory.weight_shapes import listed
from tfm_cli.text.language_tags import LANGUAGE_TAG
from tfm_cli.tokenizer.model_file import MAX_MODEL_BYTES
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
SOURCE_PIECES, TARGET_PIECES = "vocab.json", "target_vocab.json"
SOURCE_MODEL, TARGET_MODEL = "source.spm", "target.spm"
_ROLES = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}


def read_tokenizers(directory: Path, options: Options, problems: list[str]) -> TokenizerPair | None:
    """Return the tokenizers of a directory; None if there are problems.

    Vocabularies in the order of the SentencePiece models are dropped, so that an imported export
    has its original tokenizers: a joint one, or one for each side.

    Args:
        directory: the directory to read.
        options: the settings of the model.
        problems: receives a line for each missing file, and for each fault of vocabularies and
            special pieces.

    Raises:
        ModelError: a file is damaged, or is not a SentencePiece model.
    """
    settings = read_json(directory, SETTINGS) if has_file(directory, SETTINGS) else {}
    special = read_json(directory, SPECIAL) if has_file(directory, SPECIAL) else {}
    before = len(problems)
    separate = settings.get("separate_vocabs", False)
    if not isinstance(separate, bool):
        problems.append(f"{SETTINGS}: `separate_vocabs` must be true or false")
        separate = False
    if settings.get("sp_model_kwargs"):
        problems.append(f"{SETTINGS}: `sp_model_kwargs` is set, expected none")
    roles = {role: _content(settings.get(role, special.get(role)), piece)
             for role, piece in _ROLES.items()}  # fmt: skip
    problems += _added_tokens(directory, settings, set(roles.values()))

    sizes = options.vocab_sizes
    source_name, target_name = SOURCE_PIECES, TARGET_PIECES if separate else SOURCE_PIECES
    needed = (source_name, target_name, SOURCE_MODEL, TARGET_MODEL)
    problems += missing_files(directory, needed)
    source = _pieces(directory, source_name, sizes[0], problems)
    target = _pieces(directory, target_name, sizes[1], problems) if separate else source
    if not separate and None not in sizes and sizes[0] != sizes[1]:
        problem = f"is {sizes[1]}, but {SOURCE_PIECES} is the vocabulary of both sides"
        problems.append(f"config.json: `decoder_vocab_size` {problem} and has {sizes[0]} pieces")
    eos, start = options.eos, options.start
    if len(problems) > before or not (source and target and eos and start):
        return None
    problems += _special_token_problems(source, target, roles, options, source_name, target_name)
    if len(problems) > before:
        return None

    models = [read_source(directory, name, max_bytes=MAX_MODEL_BYTES)
              for name in (SOURCE_MODEL, TARGET_MODEL)]  # fmt: skip
    banned = tuple(target[piece.value] for piece in options.banned)
    target_vocabulary = Vocabulary(
        target, roles["eos_token"], roles["unk_token"], target[start.value], banned,
        name=str(directory / target_name),
    )  # fmt: skip
    source_vocabulary = target_vocabulary
    if separate:  # the start and banned pieces concern the target side only
        source_vocabulary = Vocabulary(
            source, roles["eos_token"], roles["unk_token"], roles["eos_token"], (),
            name=str(directory / source_name),
        )  # fmt: skip
    return _pair(directory, models, source_vocabulary, target_vocabulary, separate=separate)


def _content(value: object, default: str) -> str:
    """Return a special piece, which is stored as a string or as an object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else default


def _added_tokens(directory: Path, settings: Mapping[str, Any], known: set[str]) -> list[str]:
    """Report added pieces, which Hugging Face splits off a text before it runs SentencePiece."""
    added: list[tuple[str, str]] = []
    problems = []
    for name in ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        entries = settings.get(name) or []
        values = list(entries.values()) if isinstance(entries, Mapping) else entries
        if not isinstance(values, list):
            problems.append(f"{SETTINGS}: `{name}` is {quoted(values)}, expected a list of pieces")
            continue
        for entry in values:
            piece = entry.get("content") if isinstance(entry, Mapping) else entry
            if isinstance(piece, str):
                added.append((SETTINGS, piece))
            else:
                problems.append(f"{SETTINGS}: `{name}` has {quoted(entry)}, expected a piece")
    if has_file(directory, ADDED):
        added += [(ADDED, piece) for piece in read_json(directory, ADDED)]
    return problems + [
        f"{file}: adds the piece `{piece}` to those of {SOURCE_PIECES}"
        for file, piece in dict.fromkeys(added)
        if piece not in known and not LANGUAGE_TAG.fullmatch(piece)
    ]


def _pieces(
    directory: Path, name: str, expected_size: int | None, problems: list[str]
) -> tuple[str, ...] | None:
    """Return the pieces in the order of their ids; report ids that are not 0 … size - 1."""
    if not has_file(directory, name):
        return None
    table = read_json(directory, name)
    size = len(table) if expected_size is None else expected_size
    wrong = [
        f"`{piece}` has {_id_text(value)}"
        for piece, value in table.items()
        if type(value) is not int or not 0 <= value < size
    ]
    by_id: dict[int, str] = {}
    for piece, value in table.items():
        if type(value) is int and 0 <= value < size:
            if value in by_id:
                wrong.append(f"`{piece}` and `{by_id[value]}` both have the id {value}")
            by_id.setdefault(value, piece)
    missing = [i for i in range(size) if i not in by_id] if size <= len(table) + 8 else []
    wrong += [f"the id {i} has no piece" for i in missing]
    if len(table) != size:
        problems.append(f"{name}: has {len(table)} pieces, expected {size} as in config.json")
    if wrong:
        ids = f"must have the ids 0 … {size - 1}, each once"
        problems.append(f"{name}: {ids}: {listed(wrong, ', ')}")
    if wrong or len(table) != size:
        return None
    return tuple(by_id[i] for i in range(size))


def _id_text(value: object) -> str:
    return f"the id {value}" if type(value) is int else f"`{str(value)[:20]}` for an id"


def _special_token_problems(
    source: tuple[str, ...],
    target: tuple[str, ...],
    roles: Mapping[str, str],
    options: Options,
    source_name: str,
    target_name: str,
) -> list[str]:
    """Report special pieces that the vocabularies lack or that have other ids."""
    problems = []
    eos = options.eos
    for piece_id in (eos, options.start, *options.banned):
        if piece_id is not None and not 0 <= piece_id.value < len(target):
            problem = f"has the id {piece_id.value}, expected one below {len(target)}"
            problems.append(f"{piece_id.option} {problem}")
    for file, pieces in dict.fromkeys([(source_name, source), (target_name, target)]):
        known = set(pieces)
        problems += [
            f"{file}: has no `{roles[role]}`"
            for role in ("unk_token", "eos_token")
            if roles[role] not in known
        ]
    if not problems and eos is not None and target[eos.value] != roles["eos_token"]:
        problem = f"is `{target[eos.value]}`, expected `{roles['eos_token']}`"
        problems.append(f"{eos.option} {eos.value} {problem}")
    pad_id = options.pad_id
    if not problems and pad_id is not None and roles["pad_token"] in source:
        actual_id = source.index(roles["pad_token"])
        if actual_id != pad_id:
            problem = f"is {pad_id}, but `{roles['pad_token']}` has the id {actual_id}"
            problems.append(f"config.json: `pad_token_id` {problem}")
    return problems


def _pair(
    directory: Path,
    models: list[bytes],
    source_vocabulary: Vocabulary,
    target_vocabulary: Vocabulary,
    *,
    separate: bool,
) -> TokenizerPair:
    """Return the pair of tokenizers, without vocabularies that add nothing to their models."""
    source_model, target_model = models
    if (
        source_model == target_model
        and source_vocabulary.pieces == target_vocabulary.pieces
        and _is_redundant(target_model, target_vocabulary, decodes=True)
    ):
        return TokenizerPair.joint(Tokenizer(target_model))
    if (
        separate
        and _is_redundant(source_model, source_vocabulary, decodes=False)
        and _is_redundant(target_model, target_vocabulary, decodes=True)
    ):
        return TokenizerPair(Tokenizer(source_model), Tokenizer(target_model))
    return TokenizerPair(
        Tokenizer(source_model, source_vocabulary, name=str(directory / SOURCE_MODEL)),
        Tokenizer(target_model, target_vocabulary, name=str(directory / TARGET_MODEL)),
    )


def _is_redundant(model: bytes, vocabulary: Vocabulary, *, decodes: bool) -> bool:
    """Return True if a vocabulary adds nothing to its SentencePiece model."""
    try:
        plain = Tokenizer(model)
    except ModelError:  # it has no </s>, or is damaged, which is reported elsewhere
        return False
    ids = vocabulary.ids
    if plain.marian_pieces != vocabulary.pieces or plain.eos_id != ids[vocabulary.eos]:
        return False
    if plain.unk_id != ids[vocabulary.unk]:
        return False
    banned = tuple(sorted(ids[piece] for piece in vocabulary.banned))
    return not decodes or (plain.start_id, plain.banned_ids) == (ids[vocabulary.start], banned)
