import pytest

from tfm_cli.console import visible


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
