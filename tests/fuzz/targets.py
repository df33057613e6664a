"""What is fuzzed: functions that are given any bytes, and what they may answer.

Each takes the bytes or refuses them by an error that is meant; everything else is a finding.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import sentencepiece
from safetensors import deserialize

from tfm_cli.errors import ModelError, TfmError
from tfm_cli.files.layout import MANIFEST_FILE, STATE_FILE
from tfm_cli.files.safetensors_file import SafetensorsFile
from tfm_cli.files.untrusted import parse_json
from tfm_cli.model_directory.config_file import load_config
from tfm_cli.text.reader import LineReader
from tfm_cli.tokenizer.model_check import walk_model
from tfm_cli.tokenizer.vocabulary import Vocabulary

Target = Callable[[bytes], str]  # says in a word or two what came of it
_MEMORY = Path("/dev/shm")  # where there is one, files cost less
_LINES = ["a b c", "ＡＢＣ ½ ﬁ é", "", "日本語 \u3000", "\ufffd\x00\x1b", "▁ ▁▁", "x" * 300]


def place_of(process: int) -> Path:
    """Where a process that fuzzes writes the files that it tries."""
    home = _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())
    return home / f"tfm-fuzz-{process}"


def _written(name: str, content: bytes) -> Path:
    place = place_of(os.getpid())
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(content)
    return place


def lines(content: bytes) -> str:
    """As many lines come out as line feeds tell of, however the bytes arrive."""
    options = content[0] if content else 0
    content = content[1:]
    invalid: Literal["refuse", "replace"] = "replace" if options & 1 else "refuse"
    limit = 7 if options & 2 else 1 << 20
    stream = io.BufferedReader(io.BytesIO(content), buffer_size=1 + options % 61)
    reader = LineReader(stream, "text", invalid=invalid, max_line_bytes=limit)
    try:
        found = list(reader)
    except TfmError as error:
        return f"refused: {error}"
    assert reader.num_lines == len(found)
    assert not any("\n" in line or "\0" in line for line in found)
    plain = not content.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh"))
    if plain:
        assert len(found) == content.removeprefix(b"\xef\xbb\xbf").count(b"\n") + (
            content.removeprefix(b"\xef\xbb\xbf")[-1:] not in (b"", b"\n")
        )
    return f"lines {sorted(reader.repairs.counts)}"


def config(content: bytes) -> str:
    """`config.json` of a model directory."""
    try:
        saved = load_config(_written("config.json", content))
    except ModelError as error:
        return f"refused: {error}"
    assert all(2 <= size <= 1_000_000 for size in saved.vocab_sizes)
    assert saved.settings.model.width <= 16384
    return "settings"


def manifest(content: bytes) -> str:
    """The two texts of a checkpoint; PyTorch is imported for it."""
    from tfm_cli.training import checkpoint_file as reading

    told = ""
    place = _written(MANIFEST_FILE, content)
    try:
        reading._hashes(place / MANIFEST_FILE)
        told += "manifest "
    except ModelError as error:
        told += f"refused: {error} "
    try:
        state, _ = reading._state(place / STATE_FILE, content)
        assert state.update >= 0
        told += "state"
    except ModelError as error:
        told += f"refused: {error}"
    return told


def header(content: bytes) -> str:
    """A safetensors file; what is taken, safetensors takes as well and reads in the same way."""
    place = _written("file", content)
    try:
        with SafetensorsFile(place / "file") as file:
            contents = file.read()
    except ValueError as error:
        return f"refused: {error}"
    wanted = {name: (values.dtype, list(values.shape)) for name, values in file.tensors.items()}
    # Safetensors ships no types.
    theirs = deserialize(content)  # type: ignore[no-untyped-call]
    assert {name: (one["dtype"], one["shape"]) for name, one in theirs} == wanted
    assert all(bytes(one["data"]) == bytes(contents[name]) for name, one in theirs)
    return f"{len(wanted)} tensors"


def tokenizer(content: bytes) -> str:
    """A SentencePiece model; SentencePiece itself is given what the walk lets through."""
    try:
        walk_model(content)
    except ValueError as error:
        return f"refused: {error}"
    sentencepiece.SetMinLogLevel(10)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except (RuntimeError, UnicodeDecodeError) as error:  # its words may quote a piece of any bytes
        return f"refused by SentencePiece: {error}"
    processor.Encode(_LINES, return_type=bytes)
    processor.Decode(list(range(len(processor))), return_type=bytes)
    return "model"


def json(content: bytes) -> str:
    """JSON that others wrote, and a vocabulary of it."""
    with contextlib.suppress(TfmError):
        Vocabulary.from_json(content, name="vocab.json")
    try:
        parse_json(content)
    except ValueError as error:
        return f"refused: {error}"
    return "value"


TARGETS: dict[str, Target] = {
    "config": config, "header": header, "json": json, "lines": lines, "manifest": manifest,
    "tokenizer": tokenizer,
}  # fmt: skip
