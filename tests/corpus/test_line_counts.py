"""Corpora whose sides have different numbers of lines: both counts are told, nothing is done."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY_SHAPE, RunTfm

LINES = 500
SOURCE, TARGET = b"one two\n" * LINES, "eins fünf\n".encode() * LINES
Command = Callable[[str, str], list[str]]
COMMANDS: dict[str, Command] = {
    "train": lambda s, t: [
        "train", "-s", s, "-t", t, *TINY_SHAPE, "-o", "made", "--max-updates", "1",
        "--device", "cpu",
    ],
    "validate": lambda s, t: [
        "train", "-s", "good", "-t", "good", "-vs", s, "-vt", t, *TINY_SHAPE, "-o", "made",
        "--max-updates", "1", "--device", "cpu",
    ],
    "evaluate": lambda s, t: ["evaluate", s, "-i", t, "-q", "-f", "text"],
    "check": lambda s, t: ["check", "-q", "-s", s, "-t", t],
}  # fmt: skip
UNEQUAL = {
    "a line less": (SOURCE, TARGET[: -len("eins fünf\n".encode())], LINES - 1),
    "a line more": (SOURCE, TARGET + b"sechs\n", LINES + 1),
    "a line more, packed": (SOURCE, gzip.compress(TARGET + b"sechs\n"), LINES + 1),
    "a blank line more": (SOURCE, TARGET + b"\n", LINES + 1),
    "a line more, not ended": (SOURCE, TARGET + b"sechs", LINES + 1),
}
EQUAL = {
    "not ended": (SOURCE, TARGET[:-1]),
    "not ended on either side": (SOURCE[:-1], TARGET[:-1]),
    "packed, not ended": (gzip.compress(SOURCE), gzip.compress(TARGET[:-1])),
    "other separators inside": (SOURCE, TARGET.replace(b" ", "\u2028\x85\v\f\r".encode())),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good").write_bytes(SOURCE)


def commands(*fast: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "command",
        [
            pytest.param(name, marks=() if name in fast else pytest.mark.torture)
            for name in COMMANDS
        ],
    )


@pytest.mark.parametrize("kind", UNEQUAL)
@commands("evaluate", "train")
def test_r20_sides_that_do_not_align_are_told_with_both_counts(
    command: str, kind: str, run_tfm: RunTfm
) -> None:
    source, target, count = UNEQUAL[kind]
    Path("s").write_bytes(source)
    Path("t").write_bytes(target)

    result = run_tfm(COMMANDS[command]("s", "t"))

    counts = f"{count} and {LINES}" if command == "evaluate" else f"{LINES} and {count}"
    names = "t and s" if command == "evaluate" else "s and t"
    assert f"error: {names} do not align: {counts} lines" in result.err + result.out
    assert result.code == (1 if command == "check" else 3)
    assert not Path("made").exists()


@pytest.mark.parametrize("kind", EQUAL)
@commands("evaluate")
def test_r20_sides_that_align_are_taken(command: str, kind: str, run_tfm: RunTfm) -> None:
    for name, raw in zip("st", EQUAL[kind], strict=True):
        Path(name).write_bytes(raw)

    result = run_tfm(COMMANDS[command]("s", "t"))

    assert result.code == 0, result.err
    assert "align" not in result.err
    if command == "train":
        assert f"training text: {LINES} pairs" in result.err


@pytest.mark.parametrize("blank", ["first", "last", "all", "every other"])
def test_r26_blank_references_are_told_and_blank_hypotheses_are_not(
    blank: str, run_tfm: RunTfm
) -> None:
    chosen = {"first": [0], "last": [3], "all": [0, 1, 2, 3], "every other": [1, 3]}[blank]
    Path("some").write_text("".join("\n" if i in chosen else "a b c d\n" for i in range(4)))
    Path("full").write_text("a b c d\n" * 4)

    of_references = run_tfm(["evaluate", "some", "-i", "full", "-f", "text"])
    of_hypotheses = run_tfm(["evaluate", "full", "-i", "some", "-f", "text"])

    message = f"warning: some: blank references: {len(chosen)} (first: line {chosen[0] + 1})\n"
    assert (of_references.code, of_hypotheses.code) == (0, 0)
    assert message in of_references.err
    assert "blank" not in of_hypotheses.err
