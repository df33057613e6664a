import io
import sys

import pytest

from tfm_cli import console
from tfm_cli.console import display_width, shortened, terminal_width, visible, wrapped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\u001b[2J"),
        ("\x1b]52;c;eA==\x07", "\\u001b]52;c;eA==\\u0007"),
        ("\x9b2J", "\\u009b2J"),
        ("over\rwritten", "over\\u000dwritten"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\0\x7f\u2066", "\\u0000\\u007f\\u2066"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("text", ["", "a\tb\nc", "für «ça» 猫 😀 ﷺ", "e\u0301", "א\u200fב"])
def test_other_text_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_text_that_is_too_wide_is_cut_with_an_ellipsis() -> None:
    assert shortened("in a line", 9) == "in a line"
    assert shortened("in a line", 8) == "in a li…"
    assert shortened("in a line", 6) == "in a…"
    for width in range(1, 12):
        assert display_width(shortened("猫が窓の外を見ている", width)) <= width
        assert shortened("猫が窓の外を見ている", width).endswith("…")


@pytest.mark.parametrize("width", [10, 20, 40, 80])
def test_wrapped_text_has_the_same_words_none_of_them_broken(width: int) -> None:
    text = "a word is never-broken: /not/even/a/path/that-is-too/long\n  an indented line of text"

    lines = wrapped(text, width).split("\n")

    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])


def test_wide_characters_count_twice() -> None:
    lines = wrapped("猫が 窓の 外を 見て いる", 12).split("\n")

    assert max(map(display_width, lines)) <= 12


def test_messages_are_wrapped_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = "word " * 30
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stderr", Terminal())
    on_terminal = (terminal_width(), console.wrapped_for_terminal(text.strip()))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    in_file = (terminal_width(), console.wrapped_for_terminal(text.strip()))

    assert on_terminal[0] == 40
    assert max(map(len, on_terminal[1].split("\n"))) <= 40
    assert in_file == (0, text.strip())
