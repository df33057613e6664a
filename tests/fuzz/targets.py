"""Fuzz targets: functions that take any bytes and return an outcome.

Each accepts the bytes or refuses them with an expected error; everything else is a finding.
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
from tfm_cli.tokenizer.model_file import validate_model
from tfm_cli.tokenizer.vocabulary import Vocabulary

Target = Callable[[bytes], str]  # returns a short outcome
_MEMORY = Path("/dev/shm")  # in memory if possible
_LINES = ["a b c", "ＡＢＣ ½ ﬁ é", "", "日本語 \u3000", "\ufffd\x00\x1b", "▁ ▁▁", "x" * 300]


def place_of(process: int) -> Path:
    """Return the path at which a fuzzing process writes its inputs."""
    home = _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())
    return home / f"tfm-fuzz-{process}"


def _written(name: str, content: bytes) -> Path:
    place = place_of(os.getpid())
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(content)
    return place


def lines(content: bytes) -> str:
    """Check that the number of lines matches the newlines, however the bytes are split."""
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
    """Load `config.json` of a model directory."""
    try:
        saved = load_config(_written("config.json", content))
    except ModelError as error:
        return f"refused: {error}"
    assert all(2 <= size <= 1_000_000 for size in saved.vocab_sizes)
    assert saved.settings.model.width <= 16384
    return "settings"


def manifest(content: bytes) -> str:
    """Load the two JSON files of a checkpoint; this imports PyTorch."""
    from tfm_cli.training import checkpoint as reading

    outcome = ""
    place = _written(MANIFEST_FILE, content)
    try:
        reading._hashes(place / MANIFEST_FILE)
        outcome += "manifest "
    except ModelError as error:
        outcome += f"refused: {error} "
    try:
        state, _ = reading._state(place / STATE_FILE, content)
        assert state.update >= 0
        outcome += "state"
    except ModelError as error:
        outcome += f"refused: {error}"
    return outcome


def header(content: bytes) -> str:
    """Read a safetensors file; whatever is accepted, safetensors must accept and read equally."""
    place = _written("file", content)
    try:
        with SafetensorsFile(place / "file") as file:
            contents = file.read()
    except ValueError as error:
        return f"refused: {error}"
    expected = {name: (values.dtype, list(values.shape)) for name, values in file.tensors.items()}
    # Safetensors ships no types.
    theirs = deserialize(content)  # type: ignore[no-untyped-call]
    assert {name: (one["dtype"], one["shape"]) for name, one in theirs} == expected
    assert all(bytes(one["data"]) == bytes(contents[name]) for name, one in theirs)
    return f"{len(expected)} tensors"


def tokenizer(content: bytes) -> str:
    """Load a SentencePiece model; SentencePiece itself receives what the check accepts."""
    try:
        validate_model(content)
    except ValueError as error:
        return f"refused: {error}"
    sentencepiece.SetMinLogLevel(10)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except (RuntimeError, UnicodeDecodeError) as error:  # its message may quote any bytes
        return f"refused by SentencePiece: {error}"
    processor.Encode(_LINES, return_type=bytes)
    processor.Decode(list(range(len(processor))), return_type=bytes)
    return "model"


def json(content: bytes) -> str:
    """Parse untrusted JSON, and a vocabulary in it."""
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
