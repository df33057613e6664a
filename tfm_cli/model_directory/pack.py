"""Packs: the files of a model in one `.tar` or `.tar.gz`, the same bytes each time.

A pack is a plain ustar archive without directories: regular files with fixed names, in the order of
their names. Only that is read. The standard library's reader, which also follows extended headers,
links and sparse maps, is not used on an untrusted archive: nothing in a pack chooses a path, and
every size has a bound before anything is allocated or written.
"""

import contextlib
import gzip
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from tfm_cli.errors import ConfigError, DataError, ModelError, plain_reason
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, atomic_file, check_writable
from tfm_cli.files.layout import (
    CARD_FILE,
    CONFIG_FILE,
    SHORTLIST_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
)
from tfm_cli.files.safetensors_file import MAX_HEADER_BYTES
from tfm_cli.files.untrusted import open_regular, parse_json_object, read_regular
from tfm_cli.model_directory.card import MAX_CARD_BYTES, split_metadata
from tfm_cli.model_directory.config_file import SavedConfig, load_config, model_file
from tfm_cli.model_directory.description import Description, describe, num_parameters
from tfm_cli.text.markdown import plain

_BLOCK = 512  # bytes; the size of a header, of which the content is a multiple
_RECORD = 20 * _BLOCK  # the archive is a multiple, as `tar` writes it
_PART_BYTES = 1 << 20
_MEBI = 1 << 20
# The largest size of each file; ustar has eleven octal digits for it.
_MAX_BYTES = {
    CARD_FILE: MAX_CARD_BYTES,
    CONFIG_FILE: _MEBI,
    WEIGHTS_FILE: (8 << 30) - 1,
    SHORTLIST_FILE: 1 << 30,
    **dict.fromkeys(TOKENIZER_FILES, 64 * _MEBI),
}
_MAX_TOTAL_BYTES = 10 << 30
_GZIP_MAGIC = b"\x1f\x8b"
_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_YAML_WORDS = ("no", "on", "yes", "off", "true", "false", "null")  # which YAML takes for a truth
_TRAINING_TEXT = re.compile(r"^\| training text \| (.*) \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardOptions:
    """Facts for the card of a packed model, which the model itself does not record.

    Attributes:
        source_languages: codes of ISO 639, such as `en`.
        target_languages: the same.
        license: an identifier of the Hugging Face Hub, such as `cc-by-4.0`.
    """

    source_languages: Sequence[str] = ()
    target_languages: Sequence[str] = ()
    license: str = ""


class Entry(NamedTuple):
    """A file in an archive: its name, its size, and the stream, positioned at its content."""

    name: str
    num_bytes: int
    stream: BinaryIO


# Writing.


def check_pack_output(path: Path, *, overwrite: bool) -> None:
    """Raise an error if `pack` cannot or must not write a file, before any long work begins.

    Raises:
        ConfigError: its name does not end in `.tar`, `.tar.gz` or `.tgz`, or it exists and is not a
            pack, and `overwrite` is not set.
        ResourceError: it cannot be written.
    """
    if not path.name.endswith(_SUFFIXES):
        raise ConfigError(
            f"{path}: its name must end in .tar, .tar.gz or .tgz",
            hint="name such a file",
        )
    check_writable(path)
    if not overwrite and path.is_file() and not _is_pack(path):
        raise ConfigError(
            f"{path}: exists, and is not a model that tfm packed",
            hint="name another file, or replace it with `--overwrite`",
        )


def _is_pack(path: Path) -> bool:
    """Return True for an empty file, and for an archive of a model that tfm wrote."""
    with contextlib.suppress(OSError, DataError, ValueError):
        if not path.stat().st_size:
            return True
        with _opened(path) as stream:
            contents = {
                entry.name: _config_or_nothing(entry, path) for entry in _entries(stream, path)
            }
        return "tfm_version" in parse_json_object(contents.get(CONFIG_FILE, b"{}"))
    return False


def pack(directory: Path, path: Path, card: CardOptions, *, overwrite: bool = False) -> int:
    """Write the files of a model that translation needs, with a model card, into one archive.

    The same model and options give the same bytes; those of a `.tar.gz` also depend on the version
    of zlib.

    Args:
        directory: of the model or the run.
        path: the archive, which is compressed if its name ends in `.gz` or `.tgz`.
        card: facts for the card.
        overwrite: replace a file that is not a pack.

    Returns:
        The number of files.

    Raises:
        ConfigError: as `check_pack_output`, or a language or a license is not one.
        ModelError: the model is damaged, or has no weights yet.
        OutputError: the archive cannot be written.
    """
    _check_card_options(card)
    check_pack_output(path, overwrite=overwrite)
    description = describe(directory)
    model_file(directory, WEIGHTS_FILE)  # there may be none yet
    contents: dict[str, bytes | None] = {file.name: None for file in description.files}
    contents[CARD_FILE] = packed_card(description, card).encode("utf-8", "backslashreplace")
    with atomic_file(path) as stream, _compressed(stream, path) as archive:
        position = sum(
            _add(archive, directory / name, content) for name, content in sorted(contents.items())
        )
        archive.write(bytes(2 * _BLOCK + -(position + 2 * _BLOCK) % _RECORD))
    return len(contents)


@contextlib.contextmanager
def _compressed(stream: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    """Yield the stream, or one that compresses into it, whose header has no name and no time."""
    if path.name.endswith(".tar"):
        yield stream
        return
    with gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0) as compressed:
        yield cast(BinaryIO, compressed)  # it has all methods of one


def _add(archive: BinaryIO, path: Path, content: bytes | None) -> int:
    """Add a file to an archive, with a given content or as it is, and return the bytes written."""
    with contextlib.ExitStack() as stack:
        if content is None:
            source, num_bytes = _open_file(path, stack)
        else:
            source, num_bytes = io.BytesIO(content), len(content)
        if num_bytes > _MAX_BYTES[path.name]:
            most = f"expected at most {_MAX_BYTES[path.name]}"
            raise ModelError(f"{path}: cannot be packed: it has {num_bytes} bytes, {most}")
        archive.write(_header(path.name, num_bytes))
        left = num_bytes
        while part := source.read(min(left, _PART_BYTES)):
            archive.write(part)
            left -= len(part)
        if left:
            raise ModelError(f"{path}: was written to while it was read", hint="pack it again")
    archive.write(bytes(_padded(num_bytes) - num_bytes))
    return _BLOCK + _padded(num_bytes)


def _open_file(path: Path, stack: contextlib.ExitStack) -> tuple[BinaryIO, int]:
    """Open a file of a model until the stack is closed, and return it with its size."""
    try:
        file = stack.enter_context(io.BufferedReader(open_regular(path)))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    return file, os.fstat(file.fileno()).st_size


def _header(name: str, num_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = num_bytes, 0o644  # time, owner and group are 0 and nameless
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _padded(num_bytes: int) -> int:
    return num_bytes + -num_bytes % _BLOCK


# The card.


def _check_card_options(card: CardOptions) -> None:
    problems = [
        f"`--{side}-language`: `{code}` is not a code of a language, such as `en` or `pt-BR`"
        for side, codes in (("source", card.source_languages), ("target", card.target_languages))
        for code in codes
        if not _LANGUAGE.fullmatch(code)
    ]
    if card.license and not _LICENSE.fullmatch(card.license):
        problems.append(
            f"`--license`: `{card.license}` is not an identifier of the Hugging Face Hub, such as "
            "`cc-by-4.0` or `apache-2.0`"
        )
    if problems:
        title = [] if len(problems) == 1 else [f"the card has {len(problems)} problems"]
        raise ConfigError("\n  ".join([*title, *problems]))


def packed_card(description: Description, options: CardOptions) -> str:
    """Return the card of a packed model: metadata in YAML for the Hugging Face Hub, and its text.

    The row with the training text names files without their folders. Everything else is kept, and
    so is metadata that the card already has.

    Raises:
        ConfigError: languages or a license are given, but the card has its own metadata.
        ModelError: the card cannot be read.

    Source of the metadata: https://huggingface.co/docs/hub/model-cards.
    """
    path = description.path / CARD_FILE
    text = ""
    with contextlib.suppress(FileNotFoundError):
        try:
            content = read_regular(path, max_bytes=MAX_CARD_BYTES // 2)
            text = content.decode("utf-8", "backslashreplace")
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read: {plain_reason(error)}") from error
    metadata, body = split_metadata(text)
    if metadata:
        if options != CardOptions():
            raise ConfigError(
                f"{path}: has metadata of its own, which languages and a license would replace",
                hint="change the metadata in the file, or remove them there",
            )
        return text
    if not body.strip():
        body = _short_card(description)
    body = _TRAINING_TEXT.sub(_without_folders, body)
    return f"---\n{_metadata(options)}---\n\n{body}"


def _metadata(options: CardOptions) -> str:
    languages = list(dict.fromkeys([*options.source_languages, *options.target_languages]))
    lines = ["language:"] if languages else []
    lines += [f'- "{code}"' if code in _YAML_WORDS else f"- {code}" for code in languages]
    if options.license:
        lines.append(f"license: {options.license}")
    lines += ["library_name: tfm", "pipeline_tag: translation"]
    return "".join(f"{line}\n" for line in lines)


def _without_folders(row: re.Match[str]) -> str:
    """Return the row with the training text with the names of its files only."""
    names = [path.rpartition("/")[2] for path in row[1].split(", ")]
    return f"| training text | {', '.join(names)} |"


def _short_card(description: Description) -> str:
    """Return the card of a model that has none."""
    model, counts = description.saved.settings.model, description.parameters
    data = description.saved.settings.data
    rows = {
        "training text": ", ".join((*data.source, *data.target, *data.pairs)),
        "shape": f"{model.encoder_layers}+{model.decoder_layers} layers, width {model.width}",
        "parameters": f"{counts['total']:,}",
        "vocabulary": " + ".join(f"{n:,}" for n in dict.fromkeys(description.saved.vocab_sizes)),
        "made by": f"tfm {description.saved.tfm_version}",
    }
    lines = ["# A translation model", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {plain(value)} |" for name, value in rows.items() if value]
    lines += ["", "## Use", "", "```", "tfm translate --model . < source.txt", "```", ""]
    lines += ["All settings are in `config.json`."]
    return "\n".join(lines) + "\n"


# Reading.


def unpack(path: Path, directory: Path) -> int:
    """Read an archive that `pack` wrote into a new model directory, and return its number of files.

    The archive is untrusted. It is read twice: first to its end, without writing anything; then its
    files are written beside the directory, which appears once the model in it has been verified.

    Raises:
        ConfigError: the directory exists.
        DataError: the archive is missing, damaged, or holds something else than a model.
        ModelError: the model in it is damaged.
        OutputError: the directory cannot be written.
    """
    if os.path.lexists(directory):
        raise ConfigError(f"{directory}: exists", hint="name a new directory")
    check_writable(directory, folder=True)
    with _opened(path) as stream:
        names = [entry.name for entry in _entries(stream, path) if _skip(entry, path)]
    if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in names]:
        raise _refused(path, f"no `{missing[0]}`")
    with (
        atomic_directory(directory, may_replace=lambda _: False) as temporary,
        _opened(path) as stream,
    ):
        max_bytes: dict[str, int] = {}
        for entry in _entries(stream, path):
            if max_bytes and entry.num_bytes > max_bytes.get(entry.name, -1):
                raise _refused(path, f"`{entry.name}`, which does not fit its `{CONFIG_FILE}`")
            with durable.create(temporary / entry.name) as file:
                for part in _parts(entry, path):
                    file.write(part)
            if entry.name == CONFIG_FILE:  # it precedes the other files but the card
                max_bytes = _max_bytes_of(load_config(temporary))
        describe(temporary)
    return len(names)


def _max_bytes_of(saved: SavedConfig) -> dict[str, int]:
    """Return the files that a model may have beside its `config.json`, with their largest sizes."""
    most = {name: _MAX_BYTES[name] for name in (SHORTLIST_FILE, *saved.tokenizer_files)}
    most[WEIGHTS_FILE] = 4 * num_parameters(saved)["total"] + MAX_HEADER_BYTES + 8
    return most


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open an archive, which is decompressed if it begins as gzip does.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    with io.BufferedReader(file) as stream:
        if stream.peek(2)[:2] != _GZIP_MAGIC:
            yield stream
            return
        with gzip.GzipFile(fileobj=stream) as decompressed:
            yield cast(BinaryIO, decompressed)  # it has all methods of one


def _entries(stream: BinaryIO, path: Path) -> Iterator[Entry]:
    """Yield the files of an archive, whose content must be read before the next one.

    Raises:
        DataError: it has anything but regular files with the names of a model's, each once and in
            order, and each within its size.
    """
    previous, total = "", 0
    while True:
        block = _read(stream, _BLOCK, path)
        if not any(block):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            what = f"the entry after `{previous}` is damaged" if previous else "it is no tar file"
            raise _damaged(path, what) from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.linkname:
            kind = ascii(info.type.decode("latin-1"))
            raise _refused(path, f"an entry of the type {kind}, expected regular files only")
        if info.name not in _MAX_BYTES:
            raise _refused(path, f"the name {info.name[:100]!a}, which no file of a model has")
        if info.name == previous:
            raise _refused(path, f"`{info.name}` twice")
        if info.name < previous:
            raise _refused(path, f"`{info.name}` after `{previous}`, expected the order of names")
        if not 0 <= info.size <= _MAX_BYTES[info.name]:
            most = f"expected at most {_MAX_BYTES[info.name]}"
            raise _refused(path, f"`{info.name}` with {info.size} bytes, {most}")
        previous, total = info.name, total + info.size
        if total > _MAX_TOTAL_BYTES:
            raise _refused(path, f"{total} bytes, expected at most {_MAX_TOTAL_BYTES}")
        yield Entry(info.name, info.size, stream)
        if any(_read(stream, _padded(info.size) - info.size, path)):
            raise _damaged(path, f"`{info.name}` is longer than its header says")
    # The end: zeros up to a full record.
    rest = _read(stream, _RECORD, path, is_exact=False)
    if not _BLOCK <= len(rest) < _RECORD or any(rest):
        raise _damaged(path, "it does not end as a tar file does")


def _read(stream: BinaryIO, count: int, path: Path, *, is_exact: bool = True) -> bytes:
    """Return the next bytes of an archive; fewer only at its end, and if `is_exact` is False."""
    try:
        content = stream.read(count)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, plain_reason(error)) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if is_exact and len(content) < count:
        raise _damaged(path, "it is cut off")
    return content


def _parts(entry: Entry, path: Path) -> Iterator[bytes]:
    left = entry.num_bytes
    while left:
        part = _read(entry.stream, min(left, _PART_BYTES), path)
        left -= len(part)
        yield part


def _skip(entry: Entry, path: Path) -> bool:
    """Skip the content of a file; return True."""
    for _ in _parts(entry, path):
        pass
    return True


def _config_or_nothing(entry: Entry, path: Path) -> bytes:
    """Return the content of `config.json`; skip that of any other file."""
    if entry.name == CONFIG_FILE:
        return b"".join(_parts(entry, path))
    _skip(entry, path)
    return b""


def _damaged(path: Path, reason: str) -> DataError:
    message = f"{path}: is damaged or not a model that tfm packed: {reason}"
    return DataError(message, hint="copy it again")


def _refused(path: Path, what: str) -> DataError:
    return DataError(f"{path}: is not a model that tfm packed: it has {what}")
