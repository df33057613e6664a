import pytest

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.corpus.line_checks import LinePosition, SourceTags, TagPositions
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

LINES = ["", ">>fra<< a", "b", "  ", ">>xyz<< c", "d", ">>fra<< e", ">>abc<< f"]
COUNTED = SourceTags(6, 2, 2, LinePosition(1, 12), LinePosition(1, 14))


@pytest.fixture(scope="module")
def tagged() -> Tokenizer:
    config = TokenizerConfig(vocab_size=30, byte_fallback=False)
    text = ["a b c d e f"] * 9
    return Tokenizer(
        train_tokenizer(text, config, seed=1, soft_limit=True, tags=lambda: (">>fra<<",))
    )


def test_lines_are_counted_with_the_first_of_each_kind(tagged: Tokenizer) -> None:
    counts = SourceTags()

    counts.add(tagged, LINES, position=lambda index: (1, 10 + index))

    assert counts == COUNTED
    assert SourceTags.from_json(counts.to_json()) == counts


def test_merged_counts_keep_the_first_position() -> None:
    counts = SourceTags(1)

    counts.merge(COUNTED)
    counts.merge(SourceTags(1, 1, 1, LinePosition(2, 1), LinePosition(2, 1)))

    assert counts == SourceTags(8, 3, 3, LinePosition(1, 12), LinePosition(1, 14))


def test_known_tags_may_be_given_later() -> None:
    positions = TagPositions()

    positions.add(LINES, file=1, first_number=10)

    assert positions.against([">>fra<<"]) == COUNTED
    assert positions.against([]) == SourceTags(6, 0, 4, None, LinePosition(1, 11))


def test_tags_beyond_the_limit_are_still_counted() -> None:
    positions = TagPositions()

    positions.add([f">>{number}<< a" for number in range(5000)], file=0, first_number=1)

    actual = positions.against([f">>{number}<<" for number in range(900)])
    assert (actual.lines, actual.unknown, actual.first_unknown) == (
        5000,
        4100,
        LinePosition(0, 901),
    )


@pytest.mark.parametrize(
    "wrong",
    [
        None, [], {}, {"lines": 1}, COUNTED.to_json() | {"lines": -1},
        COUNTED.to_json() | {"first_unknown": [1]}, COUNTED.to_json() | {"first_untagged": "ab"},
        COUNTED.to_json() | {"unknown": 1 << 70}, COUNTED.to_json() | {"more": 1},
    ],
)  # fmt: skip
def test_value_that_is_not_a_count_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"other counts|is not a count|is not the position"):
        SourceTags.from_json(wrong)
