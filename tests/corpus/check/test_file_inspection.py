import contextlib
import gzip
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfm_cli.corpus.check.inspection import (
    LONG_LINE_BYTES,
    FileInspection,
    FileProperties,
    Occurrences,
)
from tfm_cli.text.characters import SEPARATORS, bad_kinds

ENDS = [b"\n", b"\r\n"]
INSIDE = [
    b"word", b" ", b"\r", b"\0", b"\xff", b"\xc3", "é".encode(), "\u2028".encode(),
    "\x85".encode(), b"\v", b"\f", b"\x1c", b"\x07", "\ufffd".encode(), "\ue000".encode(),
    "\ufdd0".encode(), b"x" * LONG_LINE_BYTES,
]  # fmt: skip
texts = st.lists(st.sampled_from(ENDS + INSIDE)).map(b"".join)


def facts_of(path: Path, raw: bytes) -> FileProperties:
    path.write_bytes(raw)
    with contextlib.ExitStack() as closing:
        file = FileInspection(str(path), closing)
        while file.window():
            pass
        return file.facts


def seen(file: str, numbers: list[int]) -> Occurrences:
    return Occurrences(len(numbers), file, numbers[0]) if numbers else Occurrences()


def facts_by_the_rules(path: str, raw: bytes) -> FileProperties:
    """Return the same from the definitions, with all lines in memory."""
    *ended, last = raw.split(b"\n")
    facts = FileProperties(path)
    crlf = bool(ended) and ended[0].endswith(b"\r")
    lines = ended + [last] * bool(last)
    facts.lines = len(lines)
    facts.line_end = "CRLF" if crlf else "LF"
    facts.last_line_ends = not last
    facts.binary = raw.count(b"\0") * 100 > len(raw)
    if crlf:
        other = [n for n, line in enumerate(ended, 1) if not line.endswith(b"\r")]
    else:
        other = [n for n, line in enumerate(lines, 1) if line.rstrip(b"\0").endswith(b"\r")]
    facts.other_ends = seen(path, other)
    if crlf:
        lines = [line.removesuffix(b"\r") for line in ended] + lines[len(ended) :]
    facts.nul = seen(path, [n for n, line in enumerate(lines, 1) if b"\0" in line])
    broken = []
    for number, line in enumerate(lines, 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            broken.append(number)
            if len(broken) == 1:
                facts.invalid_byte = f"byte {error.start + 1}: 0x{line[error.start]:02x}"
    facts.invalid = seen(path, broken)
    read = [line.decode("utf-8", "replace").replace("\0", "") for line in lines]
    facts.long = seen(path, [n for n, t in enumerate(read, 1) if len(t.encode()) > LONG_LINE_BYTES])
    inside = [text if crlf else text.removesuffix("\r") for text in read]
    for character, name in SEPARATORS.items():
        facts.separators[name] = seen(path, [n for n, t in enumerate(inside, 1) if character in t])
    for kind in facts.bad:
        has = [n for n, text in enumerate(inside, 1) if kind in bad_kinds(text)]
        if kind == "replacement":
            has = [number for number in has if number not in broken]
        facts.bad[kind] = seen(path, has)
        if kind == "replacement" and has and broken:
            facts.bad[kind].line = None  # what the reader put there cannot be told from it
    return facts


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts)
def test_facts_equal_those_of_a_naive_implementation(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "text"

    assert facts_of(path, raw) == facts_by_the_rules(str(path), raw)


def test_byte_order_mark_is_recorded_and_dropped(tmp_path: Path) -> None:
    facts = facts_of(tmp_path / "text", b"\xef\xbb\xbfa\nb\xef\xbb\xbfc\n")

    assert facts.byte_order_mark
    assert facts.bad["byte order mark"] == Occurrences(1, facts.path, 2)


def test_line_beyond_a_mebibyte_is_cut_and_counted(tmp_path: Path) -> None:
    facts = facts_of(tmp_path / "text", b"a\n" + b"x" * (1 << 20) + b"\n" + b"y" * 2_000_000)

    assert facts.cut == Occurrences(1, facts.path, 3)
    assert facts.long == Occurrences(2, facts.path, 2)


def test_unreadable_file_is_a_problem_and_does_not_stop(tmp_path: Path) -> None:
    whole = gzip.compress(b"a\nb\n" * 50_000)

    missing = FileInspection(str(tmp_path / "none"), contextlib.ExitStack())
    folder = FileInspection(str(tmp_path), contextlib.ExitStack())
    piped = FileInspection("-", contextlib.ExitStack())
    cut = facts_of(tmp_path / "cut", whole[:-20])
    wide = facts_of(tmp_path / "wide", "a\n".encode("utf-16"))

    assert missing.window() == folder.window() == piped.window() == []
    assert missing.facts.problem == f"{tmp_path}/none: there is no such file"
    assert folder.facts.problem == f"{tmp_path}: is a directory, expected a file"
    assert piped.facts.problem == "-: standard input can be read only once, expected a file"
    assert "cut: the gzip data is damaged or cut off after line" in cut.problem
    assert cut.hint == "fetch or compress the file again"
    assert (wide.problem, wide.hint) == (
        f"{tmp_path}/wide: is UTF-16, expected UTF-8", "convert it with `iconv -f UTF-16 -t UTF-8`",
    )  # fmt: skip


def test_share_grows_to_one(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"line\n" * 40_000)
    with contextlib.ExitStack() as closing:
        file = FileInspection(str(path), closing)
        shares = [file.share()]
        while file.window():
            shares.append(file.share())

    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
