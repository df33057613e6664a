"""The tokenizers of a Hugging Face Marian directory, as a pair of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfm_cli.errors import ModelError
from tfm_cli.interop.hugging_face.config_reader import shown
from tfm_cli.interop.hugging_face.options import Options
from tfm_cli.interop.source_files import has_file, missing_files, read_json, read_source
from tfm_cli.text.language_tags import LANGUAGE_TAG
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import MAX_MODEL_BYTES, Tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
SOURCE_PIECES, TARGET_PIECES = "vocab.json", "target_vocab.json"
SOURCE_MODEL, TARGET_MODEL = "source.spm", "target.spm"
_ROLES = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
_MAX_NAMED = 8


def read_tokenizers(
    directory: Path, options: Options, complaints: list[str]
) -> TokenizerPair | None:
    """The tokenizers of a directory; None where a complaint says why there are none.

    Two that are SentencePiece's own, in its order, come back as what they were before an export:
    one joint tokenizer, or one for each side without a vocabulary.

    Args:
        directory: what is read.
        options: what the directory's other files ask for.
        complaints: gets a line for each missing file, and for all that is wrong with vocabularies
            and special pieces.

    Raises:
        ModelError: a file is torn, or no SentencePiece model.
    """
    settings = read_json(directory, SETTINGS) if has_file(directory, SETTINGS) else {}
    special = read_json(directory, SPECIAL) if has_file(directory, SPECIAL) else {}
    before = len(complaints)
    separate = settings.get("separate_vocabs", False)
    if not isinstance(separate, bool):
        complaints.append(f"{SETTINGS}: `separate_vocabs` must be true or false")
        separate = False
    if settings.get("sp_model_kwargs"):
        complaints.append(f"{SETTINGS}: `sp_model_kwargs` is set, wanted none")
    roles = {role: _content(settings.get(role, special.get(role)), piece)
             for role, piece in _ROLES.items()}  # fmt: skip
    complaints += _added(directory, settings, set(roles.values()))

    sizes = options.vocab_sizes
    source_name, target_name = SOURCE_PIECES, TARGET_PIECES if separate else SOURCE_PIECES
    needed = (source_name, target_name, SOURCE_MODEL, TARGET_MODEL)
    complaints += missing_files(directory, needed)
    source = _pieces(directory, source_name, sizes[0], complaints)
    target = _pieces(directory, target_name, sizes[1], complaints) if separate else source
    if not separate and None not in sizes and sizes[0] != sizes[1]:
        told = f"is {sizes[1]}, but {SOURCE_PIECES} is the vocabulary of both sides"
        complaints.append(f"config.json: `decoder_vocab_size` {told} and has {sizes[0]} pieces")
    eos, start = options.eos, options.start
    if len(complaints) > before or not (source and target and eos and start):
        return None
    complaints += _misplaced(source, target, roles, options, source_name, target_name)
    if len(complaints) > before:
        return None

    models = [read_source(directory, name, max_bytes=MAX_MODEL_BYTES)
              for name in (SOURCE_MODEL, TARGET_MODEL)]  # fmt: skip
    banned = tuple(target[piece.value] for piece in options.banned)
    target_vocabulary = Vocabulary(
        target, roles["eos_token"], roles["unk_token"], target[start.value], banned,
        name=str(directory / target_name),
    )  # fmt: skip
    source_vocabulary = target_vocabulary
    if separate:  # where a decoder starts, and what it never writes, is of no use on this side
        source_vocabulary = Vocabulary(
            source, roles["eos_token"], roles["unk_token"], roles["eos_token"], (),
            name=str(directory / source_name),
        )  # fmt: skip
    return _simplest(directory, models, source_vocabulary, target_vocabulary, separate=separate)


def _content(value: object, default: str) -> str:
    """A special piece, which stands as a string or as an object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else default


def _added(directory: Path, settings: Mapping[str, Any], known: set[str]) -> list[str]:
    """Complaints of pieces that Hugging Face would cut out of a text before SentencePiece does."""
    added: list[tuple[str, str]] = []
    wrong = []
    for name in ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(name) or []
        values = list(listed.values()) if isinstance(listed, Mapping) else listed
        if not isinstance(values, list):
            wrong.append(f"{SETTINGS}: `{name}` is {shown(values)}, wanted a list of pieces")
            continue
        for entry in values:
            piece = entry.get("content") if isinstance(entry, Mapping) else entry
            if isinstance(piece, str):
                added.append((SETTINGS, piece))
            else:
                wrong.append(f"{SETTINGS}: `{name}` has {shown(entry)}, wanted a piece")
    if has_file(directory, ADDED):
        added += [(ADDED, piece) for piece in read_json(directory, ADDED)]
    return wrong + [
        f"{file}: adds the piece `{piece}` to those of {SOURCE_PIECES}"
        for file, piece in dict.fromkeys(added)
        if piece not in known and not LANGUAGE_TAG.fullmatch(piece)
    ]


def _pieces(
    directory: Path, name: str, told_size: int | None, complaints: list[str]
) -> tuple[str, ...] | None:
    """The pieces in the order of their ids; complains where these are not 0 … size - 1."""
    if not has_file(directory, name):
        return None
    table = read_json(directory, name)
    size = len(table) if told_size is None else told_size
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
        told = f"has {len(table)} pieces, wanted {size} as config.json says"
        complaints.append(f"{name}: {told}")
    if wrong:
        more = f", … and {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
        listed = ", ".join(wrong[:_MAX_NAMED])
        complaints.append(f"{name}: wants ids 0 … {size - 1}, each once: {listed}{more}")
    if wrong or len(table) != size:
        return None
    return tuple(by_id[i] for i in range(size))


def _id_text(value: object) -> str:
    return f"the id {value}" if type(value) is int else f"`{str(value)[:20]}` for an id"


def _misplaced(
    source: tuple[str, ...],
    target: tuple[str, ...],
    roles: Mapping[str, str],
    options: Options,
    source_name: str,
    target_name: str,
) -> list[str]:
    """Complaints of special pieces that the vocabularies lack or that have other ids."""
    wrong = []
    eos = options.eos
    for piece_id in (eos, options.start, *options.banned):
        if piece_id is not None and not 0 <= piece_id.value < len(target):
            told = f"has the id {piece_id.value}, wanted one below {len(target)}"
            wrong.append(f"{piece_id.place} {told}")
    for file, pieces in dict.fromkeys([(source_name, source), (target_name, target)]):
        known = set(pieces)
        wrong += [
            f"{file}: has no `{roles[role]}`"
            for role in ("unk_token", "eos_token")
            if roles[role] not in known
        ]
    if not wrong and eos is not None and target[eos.value] != roles["eos_token"]:
        found = f"`{target[eos.value]}`, wanted `{roles['eos_token']}`"
        wrong.append(f"{eos.place} {eos.value} is {found}")
    pad_id = options.pad_id
    if not wrong and pad_id is not None and roles["pad_token"] in source:
        found_id = source.index(roles["pad_token"])
        if found_id != pad_id:
            told = f"is {pad_id}, but `{roles['pad_token']}` has the id {found_id}"
            wrong.append(f"config.json: `pad_token_id` {told}")
    return wrong


def _simplest(
    directory: Path,
    models: list[bytes],
    source_vocabulary: Vocabulary,
    target_vocabulary: Vocabulary,
    *,
    separate: bool,
) -> TokenizerPair:
    source_model, target_model = models
    if (
        source_model == target_model
        and source_vocabulary.pieces == target_vocabulary.pieces
        and _is_own(target_model, target_vocabulary, decodes=True)
    ):
        return TokenizerPair.joint(Tokenizer(target_model))
    if (
        separate
        and _is_own(source_model, source_vocabulary, decodes=False)
        and _is_own(target_model, target_vocabulary, decodes=True)
    ):
        return TokenizerPair(Tokenizer(source_model), Tokenizer(target_model))
    return TokenizerPair(
        Tokenizer(source_model, source_vocabulary, name=str(directory / SOURCE_MODEL)),
        Tokenizer(target_model, target_vocabulary, name=str(directory / TARGET_MODEL)),
    )


def _is_own(model: bytes, vocabulary: Vocabulary, *, decodes: bool) -> bool:
    """Whether a vocabulary says no more than its SentencePiece model does by itself."""
    try:
        plain = Tokenizer(model)
    except ModelError:  # no </s> of its own, or no model at all, which is told of elsewhere
        return False
    ids = vocabulary.ids
    if plain.marian_pieces != vocabulary.pieces or plain.eos_id != ids[vocabulary.eos]:
        return False
    if plain.unk_id != ids[vocabulary.unk]:
        return False
    banned = tuple(sorted(ids[piece] for piece in vocabulary.banned))
    return not decodes or (plain.start_id, plain.banned_ids) == (ids[vocabulary.start], banned)
