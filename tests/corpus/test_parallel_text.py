import gzip
import os
from pathlib import Path

import pytest

from tfm_cli.corpus import parallel_text
from tfm_cli.corpus.parallel_text import check_files, read_corpus, read_pairs
from tfm_cli.corpus.sources import aligned_files
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.text.reader import open_lines


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> str:
    data = content if isinstance(content, bytes) else content.encode()
    Path(name).write_bytes(data)
    return name


def test_files_are_read_in_order() -> None:
    sources = [write("a.en", "1\n2\n"), write("b.en", "3\n")]
    targets = [write("a.de", "eins\nzwei\n"), write("b.de", "drei")]

    pairs = list(read_pairs(sources, targets))

    assert pairs == [("1", "eins"), ("2", "zwei"), ("3", "drei")]


def test_no_files_give_no_pairs() -> None:
    assert list(read_pairs([], [])) == []


def test_only_a_line_feed_ends_a_line() -> None:
    source = write("a.en", "one\u2028line\x85here\rtoo\nnext")
    target = write("a.de", "eins\nzwei\n")

    assert [s for s, _ in read_pairs([source], [target])] == ["one\u2028line\x85here\rtoo", "next"]


def test_gzip_is_detected_by_its_content() -> None:
    source = write("a.txt", gzip.compress(b"1\n2\n") + gzip.compress(b"3\n"))
    target = write("a.gz", "eins\nzwei\ndrei\n")

    assert [s for s, _ in read_pairs([source], [target])] == ["1", "2", "3"]


def test_blank_lines_are_kept() -> None:
    source, target = write("a.en", "\n2\n\n"), write("a.de", "eins\n\n\n")

    assert list(read_pairs([source], [target])) == [("", "eins"), ("2", ""), ("", "")]


def test_files_that_do_not_align_are_all_told_with_their_counts() -> None:
    sources = [write("a.en", "1\n2\n"), write("b.en", "1\n"), write("c.en", "1\n\n")]
    targets = [write("a.de", "1\n"), write("b.de", "1"), write("c.de", "1\n2\n3")]

    with pytest.raises(DataError) as caught:
        list(read_pairs(sources, targets))

    assert str(caught.value) == (
        "a.en and a.de do not align: 2 and 1 lines\n  c.en and c.de do not align: 2 and 3 lines"
    )
    assert "line N" in str(caught.value.hint)


def test_different_numbers_of_files_are_refused() -> None:
    with pytest.raises(ConfigError, match="source and target must be as many files, got 1 and 2"):
        list(read_pairs(["a"], ["b", "c"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"ab\xff", "byte 3: 0xff is not UTF-8"),
        (b"\xc3", "byte 1: 0xc3 is not UTF-8"),
        (b"x\xed\xa0\x80", "byte 2: 0xed is not UTF-8"),
    ],
)
def test_invalid_utf8_is_refused_with_file_line_and_byte(line: bytes, message: str) -> None:
    source, target = write("a.en", b"fine\n" + line + b"\n"), write("a.de", "1\n2\n")

    with pytest.raises(DataError) as caught:
        list(read_pairs([source], [target]))

    assert str(caught.value) == f"a.en:2: {message}"


def test_missing_file_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.en: cannot be read: No such file or directory"):
        list(read_pairs(["a.en"], [write("a.de", "1\n")]))


def test_lines_of_damaged_gzip_are_counted() -> None:
    lines = b"".join(b"%d\n" % (i * i * 7919) for i in range(50_000))
    whole = gzip.compress(lines)
    Path("s").write_bytes(whole[: len(whole) // 2])
    write("t", lines)

    with pytest.raises(DataError, match=r"damaged or cut off after line [1-9][0-9]{3}"):
        list(read_pairs(["s"], ["t"]))


@pytest.mark.parametrize(
    "text", [b"a\r\nb\r", b"a\r\nb", b"a\r\nb\nc\r\n", b"a\r\nb\r\n", b"a\nb\r"]
)
def test_line_ends_are_those_of_the_line_reader(text: bytes, log_messages: list[str]) -> None:
    write("s", text)
    write("t", text)
    with open_lines("s") as reader:
        expected = list(reader)

    assert [source for source, _ in read_pairs(["s"], ["t"])] == expected
    assert log_messages == [f"{name}: {note}" for name in "st" for note in reader.notes()]


def test_repaired_lines_are_logged_once(log_messages: list[str]) -> None:
    source, target = write("a.en", f"{'long ' * 50}\na\0b\n" * 2), write("a.de", "1\n2\n3\n4\n")

    list(read_corpus(aligned_files([source], [target]), warn=False))
    list(read_pairs([source], [target]))

    assert log_messages == ["a.en: lines with NUL characters, removed: 2 (first: line 2)"]


def test_unreadable_files_are_reported_together() -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    good = write("good", "1\n")

    with pytest.raises(DataError) as caught:
        check_files([good, "none", "folder", "pipe", "-", "none", "x" * 300])

    assert str(caught.value).split("\n  ") == [
        "5 files cannot be used",
        "none: there is no such file",
        "folder: is a directory, expected a file",
        "pipe: can be read only once, expected a file",
        "-: standard input can be read only once, expected a file",
        f"{'x' * 300}: cannot be read: File name too long",
    ]


def test_a_single_unreadable_file_is_reported_in_one_line() -> None:
    with pytest.raises(DataError) as caught:
        check_files(["none"])

    assert str(caught.value) == "none: there is no such file"


def test_readable_files_pass() -> None:
    check_files([write("a", "1\n"), write("b", b"")])


def test_progress_counts_pairs_and_the_share_of_all_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_text, "MAX_BLOCK_LINES", 2)
    files = aligned_files(
        [write("a", "1\n2\n3\n"), write("b", "1\n2\n")],
        [write("c", "1\n2\n3\n"), write("d", "1\n2\n")],
    )
    shown: list[tuple[str, float | None]] = []

    list(read_corpus(files, show=lambda words, share: shown.append((words, share))))

    assert shown == [("2 pairs", 0.6), ("3 pairs", 0.6), ("5 pairs", 1.0)]
