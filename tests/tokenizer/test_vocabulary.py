import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.errors import ModelError
from tfm_cli.tokenizer.vocabulary import Vocabulary

SPECIAL = ("</s>", "<unk>", "<pad>")


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=20))
def test_vocabulary_survives_writing_and_reading(pieces: list[str]) -> None:
    own = [piece for piece in pieces if piece not in SPECIAL]
    vocabulary = Vocabulary((*SPECIAL, *own), banned=("<pad>", "<unk>"))

    again = Vocabulary.from_json(vocabulary.to_json(), name="vocab.json")

    assert again == vocabulary
    assert [again.ids[piece] for piece in again.pieces] == list(range(len(own) + 3))
    assert again.to_json() == vocabulary.to_json()


def test_order_and_roles_are_written() -> None:
    one = Vocabulary((*SPECIAL, "a", "b"))

    assert Vocabulary((*SPECIAL, "b", "a")).to_json() != one.to_json()
    assert Vocabulary((*SPECIAL, "a", "b"), start="</s>").to_json() != one.to_json()


def test_all_problems_of_a_vocabulary_are_reported_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        Vocabulary(("a", "</s>", "a"), start="<s>", banned=("</s>", "<pad>"), name="x.json")

    assert str(caught.value).split("\n  ") == [
        "x.json: has the piece `a` twice",
        "x.json: has no `<unk>`, its unknown piece",
        "x.json: has no `<s>`, its start piece",
        "x.json: has no `<pad>`, its banned 2 piece",
        "x.json: bans `</s>`, without which no translation ends",
    ]


def test_vocabulary_of_one_piece_is_refused() -> None:
    with pytest.raises(ModelError, match="has 1 pieces, expected 2 to 1000000"):
        Vocabulary(("</s>",), unk="</s>", start="</s>", banned=())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or not a vocabulary: it is empty"),
        (b"\xff", "is damaged or not a vocabulary: byte 1 is 0xff"),
        (b"[" * 100_000, "is damaged or not a vocabulary"),
        (b"[]", "is not a vocabulary: expected pieces, eos, unk, start and banned"),
        (b'{"pieces": ["a"]}', "is not a vocabulary: expected pieces"),
        (
            b'{"pieces": [1], "eos": "a", "unk": "a", "start": "a", "banned": []}',
            "is not a vocabulary: expected pieces",
        ),
        (
            b'{"pieces": ["a"], "eos": null, "unk": "a", "start": "a", "banned": []}',
            "is not a vocabulary: expected pieces",
        ),
    ],
)
def test_invalid_vocabulary_is_refused_by_name(content: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        Vocabulary.from_json(content, name="m/vocab.json")

    assert str(caught.value).startswith("m/vocab.json: ")
