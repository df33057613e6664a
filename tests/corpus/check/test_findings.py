from pathlib import Path

import pytest

from tfm_cli.corpus.check.findings import Finding, find_problems
from tfm_cli.corpus.check.inspection import inspect_corpus
from tfm_cli.corpus.check.statistics import Overlap, overlap, repeats

GOOD = [f"line {number} of many" for number in range(1000)]
FAIR = [f"Zeile {number} von vielen" for number in range(1000)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(source: bytes, target: bytes, *, known: Overlap | None = None) -> list[Finding]:
    """Return the findings in a corpus of two files, `s` and `t`."""
    Path("s").write_bytes(source)
    Path("t").write_bytes(target)
    corpus = inspect_corpus("valid", (["s"], ["t"]), None, max_length=256)
    return find_problems(corpus, repeats(corpus.hashes), known)


def text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def messages(actual: list[Finding]) -> list[str]:
    return [f"{finding.level}: {finding.message}" for finding in actual]


def changed(lines: list[str], number: int, line: str) -> bytes:
    """Return the lines with the one of this number replaced."""
    return text([*lines[: number - 1], line, *lines[number:]])


def test_good_text_has_no_findings() -> None:
    assert check(text(GOOD), text(FAIR)) == []


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (text(GOOD[:999]), text(FAIR), "error: s and t do not align: 999 and 1000 lines"),
        (changed(GOOD, 17, "é").replace("é".encode(), b"ab\xff"), text(FAIR),
         "error: s:17: byte 3: 0xff is not UTF-8; 1 line of that kind"),
        (text(GOOD), b"\0\0a\n" + text(FAIR[1:2]) * 0, "error: t: looks binary, "
         "expected UTF-8 text"),
        (text(["", "a"]), text(["b", " "]), "error: valid: 0 usable pairs of 2, expected at least "
         "one"),
        (b"", b"", "error: valid: 0 usable pairs of 0, expected at least one"),
        (text(GOOD), "a\n".encode("utf-16"), "error: t: is UTF-16, expected UTF-8"),
        (changed(GOOD, 3, "a\0b"), text(FAIR),
         "warning: s:3: 1 line with NUL characters, which are removed"),
        (changed(GOOD, 3, "a\r"), text(FAIR),
         "warning: s:3: 1 line with CRLF at the end, but the first line ends in LF"),
        (text(GOOD).replace(b"\n", b"\r\n", 999), text(FAIR),
         "warning: s:1000: 1 line with LF at the end, but the first line ends in CRLF"),
        (text(GOOD).replace(b"\n", b"\r\n"), text(FAIR),
         "note: s: lines end in CRLF, which is read as a line end"),
        (b"\xef\xbb\xbf" + text(GOOD), text(FAIR),
         "note: s: begins with a byte order mark, which is dropped"),
        (text(GOOD)[:-1], text(FAIR), "note: s: the last line has no line feed"),
        (changed(GOOD, 5, "a\u2028b"), text(FAIR),
         "warning: s:5: 1 line with LS inside, which other programs take for a line end"),
        (changed(GOOD, 5, "a\ufffd"), text(FAIR), "note: s:5: 1 line with a replacement character"),
        (changed(GOOD, 5, "a\ufeffb"), text(FAIR), "note: s:5: 1 line with a byte order mark "
         "inside"),
        (text(["\ue000", "\ue000", *GOOD[2:]]), text(FAIR),
         "warning: s:1: 2 lines with a private use character"),
        (changed(GOOD, 2, "y" * 4193), text(FAIR), "note: s:2: 1 line with more than 4192 bytes"),
        (changed(GOOD, 2, "y" * (1 << 21)), text(FAIR), "warning: s:2: 1 line cut at 1048576 "
         "bytes"),
        (text([*[""] * 10, *GOOD[10:]]), text(FAIR),
         "note: s:1: 10 pairs with a blank source (1.00 %)"),
        (text([*[""] * 11, *GOOD[11:]]), text(FAIR),
         "warning: s:1: 11 pairs with a blank source (1.10 %)"),
        (changed(GOOD, 9, ""), changed(FAIR, 9, " "),
         "note: s:9: 1 pair with both sides blank (0.10 %)"),
        (text(FAIR[:20] + GOOD[20:]), text(FAIR),
         "note: s:1: 20 pairs with identical sides (2.00 %)"),
        (text(FAIR[:21] + GOOD[21:]), text(FAIR),
         "warning: s:1: 21 pairs with identical sides (2.10 %)"),
        (changed(GOOD, 1, "a " * 37), text(FAIR),
         "note: valid: 1 pair with one side more than 9 times as long as the other, in words "
         "(0.10 %)"),
        (text(["a " * 37] * 11 + GOOD[11:]), text(FAIR),
         "warning: valid: 11 pairs with one side more than 9 times as long as the other, in words "
         "(1.10 %)"),
        (text(GOOD[:950] + GOOD[:50]), text(FAIR[:950] + FAIR[:50]),
         "note: valid: 50 pairs repeat an earlier pair (5.00 %)"),
        (text(GOOD[:949] + GOOD[:51]), text(FAIR[:949] + FAIR[:51]),
         "warning: valid: 51 pairs repeat an earlier pair (5.10 %)"),
    ],
)  # fmt: skip
def test_each_fault_is_reported_with_level_and_position(
    source: bytes, target: bytes, expected: str
) -> None:
    actual = check(source, target)

    assert expected in messages(actual)
    assert all(finding.hint and finding.corpus == "valid" for finding in actual)
    order = [("error", "warning", "note").index(finding.level) for finding in actual]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (Overlap(0, 0), []),
        (Overlap(10, 10),
         ["warning: valid: 10 pairs occur in the training corpus (1.00 %)"]),
        (Overlap(11, 11), ["error: valid: 11 pairs occur in the training corpus (1.10 %)"]),
        (Overlap(0, 50),
         ["note: valid: 50 more sources occur in the training corpus with another target "
          "(5.00 %)"]),
        (Overlap(1, 52),
         ["warning: valid: 1 pair occurs in the training corpus (0.10 %)",
          "warning: valid: 51 more sources occur in the training corpus with another target "
          "(5.10 %)"]),
    ],
)  # fmt: skip
def test_level_of_overlap_depends_on_its_share(known: Overlap, expected: list[str]) -> None:
    assert messages(check(text(GOOD), text(FAIR), known=known)) == expected


def test_file_and_line_are_fields_of_a_finding() -> None:
    (actual,) = check(changed(GOOD, 5, "a\u2028b"), text(FAIR))

    assert (actual.code, actual.file, actual.line) == ("separator", "s", 5)


def test_unreadable_file_is_not_reported_as_misaligned() -> None:
    Path("t").write_bytes(text(FAIR))
    corpus = inspect_corpus("train", (["none"], ["t"]), None, max_length=256)

    actual = find_problems(corpus, repeats(corpus.hashes), None)

    assert messages(actual) == ["error: none: there is no such file"]
    assert actual[0].hint == "give a text file that can be read"


def test_corpus_overlaps_itself_completely() -> None:
    Path("s").write_bytes(text(GOOD))
    one, other = (inspect_corpus(n, (["s"], ["s"]), None, max_length=9) for n in ("train", "test"))

    assert overlap(other.hashes, one.hashes) == Overlap(1000, 1000)
