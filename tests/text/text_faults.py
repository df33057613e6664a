"""Faulty texts, and the expected behavior of every command that reads text."""

import gzip
import io
import json
import random
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import TINY_SHAPE, Result, invoke

GOOD = b"one\ntwo\nfive\n" + b"seven\n" * 40  # so that one odd byte is less than 1 %
_CUT = r"the gzip data is damaged or cut off after line \d+"


@dataclass(frozen=True)
class Fault:
    """A faulty text, and the messages expected about it.

    Attributes:
        lenient: message of commands that must answer each line; their exit code is 0 unless it
            begins with `error`.
        strict: message of commands that train or evaluate.
        found: code of the finding of `tfm check`; empty for none.
        shifted: line 1 is not `one` and line 3 is not `five`.
    """

    name: str
    raw: bytes
    lenient: str = ""
    strict: str = ""
    found: str = ""
    lines: int = 43
    file: str = "text"
    shifted: bool = False

    def __str__(self) -> str:
        return self.name


def _second(line: bytes) -> bytes:
    return GOOD.replace(b"two", line, 1)


def _invalid(name: str, line: bytes, byte: int) -> Fault:
    at = line.index(byte) + 1
    return Fault(
        name, _second(line), r"warning: \S*text: lines with invalid UTF-8, .*: 1 \(first: line 2\)",
        rf"error: \S*text:2: byte {at}: 0x{byte:02x} is not UTF-8", "invalid_utf8",
    )  # fmt: skip


def _whole(name: str, raw: bytes, message: str, found: str, lines: int = 43) -> Fault:
    """A file that cannot be read as text."""
    return Fault(name, raw, f"error: {message}", f"error: {message}", found, lines, shifted=True)


def _binary(name: str, raw: bytes) -> Fault:
    lines = raw.count(b"\n") + (not raw.endswith(b"\n"))
    message = r"warning: \S*text: lines with (invalid UTF-8|NUL)"
    strict = r"error: \S*text: looks binary \(.*\), expected UTF-8 text"
    return Fault(name, raw, message, strict, "binary", lines, shifted=True)


def _mixed(name: str, raw: bytes, other: str, count: int) -> Fault:
    message = rf"warning: \S*text: lines that end in {other}, .*: {count} \(first: line 2\)"
    return Fault(name, raw, message, message, "mixed_line_ends")


def _packed(raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0)


_chance = random.Random(3)
_PIXELS = zlib.compress(_chance.randbytes(9000))
_GZIP, _DAMAGE = _packed(GOOD), rf"\S*text: {_CUT}"
_16, _32 = (rf"\S*text: is UTF-{size}, expected UTF-8" for size in (16, 32))
_NUL = r"warning: \S*text: lines with NUL characters, removed: 1 \(first: line 2\)"
FAULTS = {
    21: [
        _invalid("overlong", b"two \xc0\xaf", 0xC0),
        _invalid("cut off", b"two \xe2\x82", 0xE2),
        _invalid("lone surrogate", b"\xed\xa0\x80", 0xED),
        _invalid("0xff", b"t\xffwo", 0xFF),
        _invalid("Latin-1", "fünf".encode("latin-1"), 0xFC),
    ],
    22: [
        Fault("NUL inside", _second(b"tw\0o"), _NUL, _NUL, "nul"),
        Fault("NUL alone", _second(b"\0"), _NUL, _NUL, "nul"),
    ],
    23: [
        Fault("CRLF", GOOD.replace(b"\n", b"\r\n"), found="crlf"),
        _mixed("LF, then CRLF", _second(b"two\r"), "CRLF", 1),
        _mixed("CRLF, then LF", GOOD.replace(b"one\n", b"one\r\n"), "LF", 42),
    ],
    24: [
        Fault("UTF-8", b"\xef\xbb\xbf" + GOOD, found="byte_order_mark"),
        _whole("UTF-16", GOOD.decode().encode("utf-16"), _16, "unreadable"),
        _whole("UTF-16BE", "\ufeffone\n".encode("utf-16-be"), _16,
               "unreadable", 1),
        _whole("UTF-32", GOOD.decode().encode("utf-32"), _32, "unreadable"),
    ],
    25: [
        Fault(f"U+{ord(character):04X}", _second(f"two{character}six".encode()), found=found)
        for character, found in zip("\u2028\u2029\x85\v\f\r\x1c", ["separator"] * 7, strict=True)
    ],
    26: [
        Fault("blank", _second(b"")), Fault("spaces", _second(b" \t ")),
        Fault("blank last", GOOD + b"\n", lines=44),
    ],
    27: [
        Fault("nothing", b"", strict="error: .*", found="no_usable_pair", lines=0, shifted=True),
        Fault("nothing packed", _packed(b""), strict="error: .*", found="no_usable_pair",
              lines=0, shifted=True),
        Fault("one line feed", b"\n", strict="error: .*", found="no_usable_pair", lines=1,
              shifted=True),
    ],
    28: [Fault("no final line feed", GOOD[:-1], found="unended_last_line")],
    31: [
        Fault("gzip called text", _GZIP),
        Fault("text called .gz", GOOD, file="text.gz"),
        Fault("two members", _packed(GOOD[:9]) + _packed(GOOD[9:])),
        _whole("cut in the data", _GZIP[:-12], _DAMAGE, "unreadable"),
        _whole("cut in the check sum", _GZIP[:-6], _DAMAGE, "unreadable"),
        _whole("garbage behind", _GZIP + b"garbage", _DAMAGE, "unreadable"),
        _whole("a flipped bit", bytes(b ^ (i == 20) for i, b in enumerate(_GZIP)),
               _DAMAGE, "unreadable"),
    ],
    32: [
        _binary("program", Path(sys.executable).read_bytes()[:20_000]),
        _binary("picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + _PIXELS),
        _binary("random", _chance.randbytes(9000)),
        _binary("tensors", b"\x48\0\0\0\0\0\0\0{" + b" " * 71 + _chance.randbytes(9000)),
        _binary("UTF-16 without a mark", GOOD.decode().encode("utf-16-le")),
    ],
}  # fmt: skip


def translate(model: Path, path: Path) -> list[str]:
    """Return the arguments of a command that must answer each line."""
    return ["translate", "-m", str(model), "-gq", "--workers", "1", "--device", "cpu",
            "-i", str(path)]  # fmt: skip


def encode(model: Path, path: Path) -> list[str]:
    """Return the arguments of a command that answers each line without a model's weights."""
    return ["tokenize", "encode", "-m", str(model), str(path)]


def decode(model: Path, path: Path) -> list[str]:
    """Return the arguments of `tfm tokenize decode`."""
    return ["tokenize", "decode", "-m", str(model), str(path)]


def _beside(path: Path, name: str, raw: bytes) -> str:
    lines = Path(path.parent / "lines").read_bytes().count(b"\n")
    (path.parent / name).write_bytes(raw * lines)
    return str(path.parent / name)


def train(model: Path, path: Path) -> list[str]:
    """Return the arguments of a command that trains on the text."""
    return ["train", "-s", str(path), "-t", _beside(path, "other", b"eins\n"), *TINY_SHAPE,
            "-o", str(path.parent / "model"), "--max-updates", "1", "--device", "cpu"]  # fmt: skip


def tokenize_train(model: Path, path: Path) -> list[str]:
    """Return the arguments of `tfm tokenize train`."""
    return ["tokenize", "train", "-i", str(path), "--model-prefix", str(path.parent / "new"),
            "--vocab-size", "20", "--model-type", "word", "--no-byte-fallback",
            "--no-hard-vocab-limit"]  # fmt: skip


def shortlist(model: Path, path: Path) -> list[str]:
    """Return the arguments of `tfm shortlist`."""
    return ["shortlist", "-m", str(model), "-s", str(path), "-t", _beside(path, "other", b"eins\n"),
            "-o", str(path.parent / "table"), "--device", "cpu"]  # fmt: skip


def evaluate_hypotheses(model: Path, path: Path) -> list[str]:
    """Return the arguments of a command that evaluates the text."""
    return [
        "evaluate",
        _beside(path, "other", b"two five six eight\n"),
        "-i",
        str(path),
        "-f",
        "text",
    ]


def evaluate_references(model: Path, path: Path) -> list[str]:
    """Return the arguments of a command that uses the text as references."""
    return ["evaluate", str(path), "-i", _beside(path, "other", b"two five six eight\n")]


Command = Callable[[Path, Path], list[str]]
LENIENT: tuple[Command, ...] = (translate, encode, decode)
STRICT: tuple[Command, ...] = (
    train, tokenize_train, shortlist, evaluate_hypotheses, evaluate_references,
)  # fmt: skip
FAST: tuple[Command, ...] = (encode,)  # the others use the same reader


def given(fault: Fault, command: Command, model: Path, folder: Path) -> Result:
    """The expected behavior of a command for a faulty text."""
    path = folder / fault.file
    path.write_bytes(fault.raw)
    (folder / "lines").write_bytes(b"\n" * fault.lines)
    return invoke(command(model, path))


def assert_answered(fault: Fault, command: Command, model: Path, folder: Path) -> None:
    """Check that every line has its answer, and that repairs are reported."""
    result = given(fault, command, model, folder)

    lines = result.out.split("\n")[:-1]
    refused = fault.lenient.startswith("error")
    assert result.code == (3 if refused else 0), result.err
    # Lines before the damage have been answered already.
    assert len(lines) <= fault.lines if refused else len(lines) == fault.lines
    # Translations of garbage may look like lost text, depending on the model.
    stderr = re.sub(r"warning: line \d+: .* may lack text; .*\n", "", result.err)
    assert re.match(fault.lenient or "$", stderr), result.err
    if not fault.shifted:
        words = {"translate": "eins fünf", "encode": "▁one ▁five", "decode": "one five"}
        assert [lines[0], lines[2]] == words[command.__name__].split()


def assert_judged(fault: Fault, command: Command, model: Path, folder: Path) -> None:
    """Check that the whole text is used, or that it is refused by name with no output."""
    result = given(fault, command, model, folder)

    if fault.strict.startswith("error"):
        assert (result.code, result.out) == (3, ""), result.err
        assert re.search(fault.strict, result.err), result.err
        assert {path.name for path in folder.iterdir()} <= {fault.file, "lines", "other"}
    else:
        assert result.code == 0, result.err
        assert re.search(fault.strict, result.err), result.err


def assert_reported(fault: Fault, folder: Path) -> None:
    """Check that `tfm check` reads the text to its end and reports the fault."""
    path = folder / fault.file
    path.write_bytes(fault.raw)
    (folder / "other").write_bytes(b"eins\n" * fault.lines)

    result = invoke(["check", "-q", "-f", "json", "-s", str(path), "-t", str(folder / "other")])

    report = json.load(io.StringIO(result.out))
    codes = {one["code"] for one in report["findings"]}
    assert fault.found in codes or not fault.found, result.out
    errors = any(one["level"] == "error" for one in report["findings"])
    assert result.code == (1 if errors else 0)
