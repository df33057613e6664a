"""Hostile model directories, each with the message of its refusal."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

MIB = 1 << 20


class Hostile(NamedTuple):
    """A change of a directory, and the message that it causes."""

    file: str
    make: Callable[[Path], object]  # receives the path of the file, which has been removed
    message: str


class _Program:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("made-by-a-pickle",))


def _header(table: object, *, values: int = 4) -> Callable[[Path], object]:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(values)
    return lambda path: path.write_bytes(content)


def _sparse(head: bytes, size: int) -> Callable[[Path], object]:
    """Return a function that writes a sparse file."""

    def make(path: Path) -> None:
        with path.open("wb") as stream:
            stream.write(head)
            stream.truncate(size)

    return make


def _tensor(begin: Any = 0, end: Any = 4, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


_VERSION = {"format_version": 2}
_LARGE = {"encoder_layers": 128, "decoder_layers": 128, "width": 16384, "heads": 256,
          "feed_forward_width": 65536}  # fmt: skip


def _config(**changes: Any) -> Callable[[Path], object]:
    """Return a change of settings in the golden model's config, at any depth."""
    golden = Path(__file__).parents[1] / "golden" / "model_v2" / "config.json"

    def make(path: Path) -> None:
        header = json.loads(golden.read_bytes())
        for name, value in changes.items():
            table = header["settings"]["model"] if name in header["settings"]["model"] else header
            table[name] = value
        path.write_text(json.dumps(header), encoding="utf-8")

    return make


Made = dict[str, tuple[Callable[[Path], object], str]]
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
HEADERS: Made = {
    "a pickle": (
        lambda p: p.write_bytes(pickle.dumps(_Program())), "is damaged or not a safetensors"
    ),
    "a long pickle": (
        lambda p: p.write_bytes(pickle.dumps([_Program()] * 9000, protocol=0)), "its header has"
    ),
    "a zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(500)), "its header has"),
    "huge shape": (_header({"a": _tensor(shape=[1 << 40, 1 << 40])}), "`a` has 4 bytes, which"),
    "shape that wraps": (_header({"a": _tensor(shape=[1 << 62, 4])}), "`a` has 4 bytes, which"),
    "overlap": (_header({"a": _tensor(), "b": _tensor()}), "`b` begins at"),
    "hole": (_header({"a": _tensor(4, 8)}, values=8), "after a gap"),
    "100 MB header": (_sparse((100 * MIB).to_bytes(8, "little"), 101 * MIB), "expected at most"),
    "header of 2^63": (_sparse((1 << 63).to_bytes(8, "little"), 99), "the file 99"),
    "name twice": (_header(b'{"a": 1, "a": 2}'), "the name `a` occurs twice"),
    "deep nesting": (_header(b'{"a":' * (MIB // 6)), "nested deeper"),
    "a MiB of lists": (
        _header(b'{"a":[' + b"[]," * (MIB // 3 - 9) + b"[]]}"), "`a` must have dtype"
    ),
    "a MiB of tensors": (
        _header({f"{n:x}": _tensor(0, 0, [0]) for n in range(15_000)}, values=0), "does not fit"
    ),
    "negative offset": (_header({"a": _tensor(-4, 0)}), "`a` has invalid data_offsets"),
    "float offset": (_header({"a": _tensor(0.0, 4.0)}), "`a` has invalid data_offsets"),
    "1e400 for a size": (_header(b'{"a": {"shape": [1e400]}}'), "1e400 is not a finite number"),
    "NaN for a size": (_header(b'{"a": {"shape": [NaN]}}'), "NaN is not a finite number"),
    "5000 digits": (_header(b'{"a": {"shape": [%s]}}' % (b"9" * 5000)), "has too many digits"),
    "another type": (_header({"a": _tensor(dtype="OBJECT")}), "has an unknown dtype"),
    "nothing": (_header({}, values=0), "does not fit config.json"),
}  # fmt: skip
CONFIGS: Made = {
    "huge model": (_config(**_LARGE), "does not fit config.json"),
    "huge vocabulary": (_config(vocab_size=10**6, source_vocab_size=10**6), "expected"),
    "larger vocabulary": (_config(vocab_size=10**9), "vocab_size: must be between 2 and 1000000"),
    "larger width": (_config(width=1 << 40), "model.width: must be at most 16384"),
    "deep nesting": (lambda p: p.write_bytes(b"[" * (MIB - 1)), "nested deeper"),
    "nesting of 9": (
        _config(settings=json.loads('{"a":' * 9 + "1" + "}" * 9)), "nested deeper than 8 levels"
    ),
    "more than a MiB": (lambda p: p.write_bytes(b" " * MIB + b"{}"), "expected at most 1048576"),
    "an exbibyte": (_sparse(b"{", 1 << 42), "expected at most 1048576"),
    "name twice": (lambda p: p.write_bytes(b'{"a": 1, "a": 1}'), "the name `a` occurs twice"),
    "NaN": (lambda p: p.write_bytes(b'{"a": NaN}'), "NaN is not a finite number"),
    "Infinity": (lambda p: p.write_bytes(b'{"a": Infinity}'), "Infinity is not a finite number"),
    "1e400": (lambda p: p.write_bytes(b'{"a": 1e400}'), "1e400 is not a finite number"),
    "very many settings": (
        _config(settings={"model": {f"width{n}": 1 for n in range(60_000)}}), "must be at most 1000"
    ),
    "very many names": (
        lambda p: p.write_text(json.dumps({f"a{n}": 2 for n in range(60_000)} | _VERSION)),
        "unknown name, and 59999 more",
    ),
    "a path for a tokenizer": (
        _config(tokenizer_files={"../../etc/passwd": "0"}), "are not tokenizer files: "
    ),
    "no UTF-8": (lambda p: p.write_bytes(b'{"\xff": 1}'), "is damaged or not a model config"),
    "binary": (
        lambda p: p.write_bytes(bytes(range(256)) * 100), "is damaged or not a model config"
    ),
}  # fmt: skip
PLACES: Made = {
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a directory": (Path.mkdir, "is not a regular file"),
    "a link to a device": (lambda p: p.symlink_to("/dev/zero"), "is not a regular file"),
    "a link to a full device": (lambda p: p.symlink_to("/dev/full"), "is not a regular file"),
    "a link to a terminal": (lambda p: p.symlink_to("/dev/ptmx"), "is not a regular file"),
    "a link to nothing": (lambda p: p.symlink_to("nothing"), "has no `"),
    "a link to nothing above": (lambda p: p.symlink_to("../../x"), "has no `"),
    "a circle of links": (lambda p: p.symlink_to(p.name), "has no `"),
    "a link to the folder": (lambda p: p.symlink_to("."), "is not a regular file"),
}
HOSTILE: dict[str, Hostile] = {
    **{f"header: {name}": Hostile(WEIGHTS, *each) for name, each in HEADERS.items()},
    **{f"config: {name}": Hostile(CONFIG, *each) for name, each in CONFIGS.items()},
    **{
        f"{file} is {name}": Hostile(file, *each)
        for file in (CONFIG, "source.model", WEIGHTS)
        for name, each in PLACES.items()
    },
}


def made(name: str, directory: Path) -> Path:
    """Create a model directory in which one file is hostile."""
    golden = Path(__file__).parents[1] / "golden" / "model_v2"
    directory.mkdir()
    for file in golden.iterdir():
        if file.is_file():
            (directory / file.name).write_bytes(file.read_bytes())
    (directory / HOSTILE[name].file).unlink()
    HOSTILE[name].make(directory / HOSTILE[name].file)
    return directory
