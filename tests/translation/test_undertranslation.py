import logging

import pytest

from tfm_cli.translation.assembly import UndertranslationCheck

SIX = "The cat sat. It slept. It ran. It ate. It left. It came back."


def warnings(
    caplog: pytest.LogCaptureFixture, source: str, text: str, tokens: tuple[int, int]
) -> list[str]:
    caplog.set_level(logging.WARNING)
    UndertranslationCheck()(7, source, text, source_tokens=tokens[0], target_tokens=tokens[1])
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("source", "text", "tokens", "result"),
    [
        (SIX, "Die Katze saß.", (20, 5), "6 sentences became 1"),
        (SIX, "Die Katze saß lange da, und sie schlief, lief und fraß.", (20, 19),
         "6 sentences became 1"),
        (SIX, "แมวนั่ง", (20, 5), "6 sentences became 1"),
        ("一つ。二つ。三つ。", "One and two.", (9, 5), "3 sentences became 1"),
        ("a b c d e f g h i j k l m n o p q r s t", "a b", (20, 2), "20 tokens became 2"),
        ("a b c d e f g h i j k l m n o p q r s t", "", (20, 0), "20 tokens became 0"),
    ],
)  # fmt: skip
def test_translation_that_lacks_much_is_warned_of(
    caplog: pytest.LogCaptureFixture, source: str, text: str, tokens: tuple[int, int], result: str
) -> None:
    (message,) = warnings(caplog, source, text, tokens)

    assert message.startswith(f"line 7: {result}, so its translation may lack text")


@pytest.mark.parametrize(
    ("source", "text", "tokens"),
    [
        (SIX, "Die Katze saß. Sie schlief, sie lief. Sie fraß und ging und kam.", (20, 18)),
        (SIX, "แมวนั่ง มันหลับ มันวิ่ง มันกิน มันจากไป มันกลับมา", (20, 20)),
        ("He came. She left.", "Er kam, und sie ging.", (5, 6)),
        ("Dr. A. Smith met Mr. B. C. Jones at St. Mary's.", "Sie trafen sich.", (16, 5)),
        ("Wait... what... no...", "Warte, was, nein.", (8, 6)),
        ("a b c d e f g h", "a", (8, 1)),
        ("漢字漢字漢字漢字", "Eight Chinese characters", (24, 4)),  # bytes
        ("", "", (0, 0)),
    ],
)
def test_translation_that_may_be_whole_is_not(
    caplog: pytest.LogCaptureFixture, source: str, text: str, tokens: tuple[int, int]
) -> None:
    assert warnings(caplog, source, text, tokens) == []


def test_only_the_first_undertranslation_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    check = UndertranslationCheck()
    for number in (3, 4, 5):
        check(number, SIX, "Saß.", source_tokens=20, target_tokens=2)

    (record,) = caplog.records
    assert record.getMessage().startswith("line 3: ")
