import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tfm_cli.text.sentences import clause_ends, sentence_ends

SENTENCES = Path(__file__).parent / "sentences.txt"


def written(path: Path) -> Iterator[tuple[str, list[str], str]]:
    """Yield each language of the file with its sentences and the separator between them."""
    for block in path.read_text("utf-8").split("\n[")[1:]:
        language, *lines = block.rstrip("\n").split("\n")
        blank = "" if lines[0].startswith("~") else " "
        yield language.rstrip("]"), [line.removeprefix("~") for line in lines], blank


def parts(text: str) -> list[str]:
    ends = [0, *sentence_ends(text), len(text)]
    return [text[a:b].strip() for a, b in pairwise(ends)]


@pytest.mark.parametrize(("language", "sentences", "blank"), [*written(SENTENCES)])
def test_no_sentence_is_cut_and_most_ends_are_found(
    language: str, sentences: list[str], blank: str
) -> None:
    text = blank.join(sentences)

    result = parts(text)

    ends, end = set(), 0
    for sentence in sentences:
        end += len(sentence)
        ends.add(end)
        end += len(blank)
    assert set(sentence_ends(text)) <= ends
    assert len(result) >= 0.75 * len(sentences)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("वह गया। वह आया।", ["वह गया।", "वह आया।"]),
        ("هل جاء؟ لا أعرف.", ["هل جاء؟", "لا أعرف."]),
        ("彼は「終わった。」と言った。走れ！", ["彼は「終わった。」と言った。", "走れ！"]),
        ("「行こう。」「はい。」", ["「行こう。」", "「はい。」"]),
        ("ሄደ። መጣ።", ["ሄደ።", "መጣ።"]),
        ("ሄደ፡፡ መጣ፡፡ ቤት፡ነው፡፡", ["ሄደ፡፡", "መጣ፡፡", "ቤት፡ነው፡፡"]),
        ("သွားတယ်။လာတယ်။", ["သွားတယ်။", "လာတယ်။"]),
        ("ទៅ។ មក។", ["ទៅ។", "មក។"]),
        ("سب گئے۔ وہ آئے۔", ["سب گئے۔", "وہ آئے۔"]),
        ("Արև է։ Քամի է։", ["Արև է։", "Քամի է։"]),
        ("Είναι εκεί; Ναι.", ["Είναι εκεί;", "Ναι."]),
        ("„Komm!“ Er kam.", ["„Komm!“", "Er kam."]),
        ("Wait... What?! No.", ["Wait...", "What?!", "No."]),
        ('"Go." He left.', ['"Go."', "He left."]),
        ("it went. it ... came! did it?", ["it went.", "it ... came!", "did it?"]),
    ],
)
def test_ends_of_all_scripts_are_found(text: str, expected: list[str]) -> None:
    assert parts(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "We went to St. Petersburg", "Tiere, z. B. Igel", "d. h. Montag", "Mr. Smith", "e.g. Paris",
        "J. R. R. Tolkien", "am 3. Oktober", "3.5 percent", "www.example.org", "version 2.0.1",
        "No. 5", "e.V. München", "т. е. Москва", "ул. Садовая", "А. С. Пушкин", "п. 5", "डॉ. शर्मा",
        "д. 5", "“Run!” she said", "M. Dupont", "p. ej. Madrid", "EE. UU. Mexicanos", "Nr. 7",
        "TP. Hồ Chí Minh", "PGS. TS. Nguyễn", "திரு. குமார்", "মো. রহমান", "ড. রহমান", "Jl. Sudirman",
        "esim. Helsinki", "க. அன்பழகன்", "t.ex. Malmö", "wait . . . Then", "wait ... for me",
        "Mme.\u00a0Dupont", "S.\u202f5", "３．５", "何？！",
    ],
)  # fmt: skip
def test_marks_inside_a_sentence_do_not_end_it(text: str) -> None:
    assert sentence_ends(text) == []


def test_a_full_stop_after_the_word_no_ends_a_sentence() -> None:
    assert parts("No. That is all.") == ["No.", "That is all."]


@pytest.mark.parametrize(
    ("text", "expected"), [("a, b; c", [2, 5]), ("1,000", []), ("一、二", [2]), ("က၊ ခ", [2])]
)
def test_clauses_end_at_commas(text: str, expected: list[int]) -> None:
    assert clause_ends(text) == expected


@pytest.mark.parametrize(
    "unit", [".", "a. ", "!(", "( ", ". ", "»", '."', "? »", "。", "...", "\u0301.", "St. "]
)
def test_time_grows_with_the_length(unit: str) -> None:
    began = time.process_time()

    sentence_ends(unit * (400_000 // len(unit)))

    assert time.process_time() - began < 10
