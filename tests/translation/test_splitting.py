import pytest

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.translation.segments import SplitQuality, split, split_qualities

TEXT = ["The cat sat. It slept, then ran away. क्या वह गया। नहीं 日本語の文。次の文。ผมไป"] * 20


@pytest.fixture(scope="module", params=["char", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    config = TokenizerConfig(vocab_size=310, model_type=request.param)
    return Tokenizer(train_tokenizer(TEXT, config, seed=1, soft_limit=True))


def cut(tokenizer: Tokenizer, line: str, longest: int) -> list[str]:
    (ids,) = tokenizer.encode([line])
    qualities = split_qualities(line, tokenizer.encode_spans([line])[0])
    assert len(qualities) == len(ids)
    return tokenizer.decode(split(ids, qualities, longest))


@pytest.mark.parametrize(
    ("line", "longest", "expected"),
    [
        ("The cat sat. It slept", 17, ["The cat sat.", "It slept"]),
        ("It slept, then ran away", 18, ["It slept,", "then ran away"]),
        ("The cat sat then", 15, ["The cat sat", "then"]),
        ("क्या वह गया। नहीं वह", 16, ["क्या वह गया।", "नहीं वह"]),
        ("日本語の文。次の文次の", 11, ["日本語の文。", "次の文次の"]),
        ("「日本語の文。」次の文", 14, ["「日本語の文。」", "次の文"]),
        ("The cat sat St. It", 17, ["The cat sat", "St. It"]),
        ("The cat z. B. ran", 15, ["The cat", "z. B. ran"]),
        ("The cat sat 1\u00a0000", 16, ["The cat sat", "1\u00a0000"]),
    ],
)
def test_line_is_cut_at_the_best_place(line: str, longest: int, expected: list[str]) -> None:
    config = TokenizerConfig(vocab_size=310, model_type="char")
    tokenizer = Tokenizer(train_tokenizer(TEXT, config, seed=1, soft_limit=True))

    assert cut(tokenizer, line, longest) == expected


@pytest.mark.parametrize("longest", range(5, 40))
@pytest.mark.parametrize(
    "line", ["☃☃☃☃☃☃☃☃☃☃☃☃", "ab☃c☃☃d ☃☃☃☃ é☃ 😀😀😀😀😀😀", "ひらがなカタカナ漢字𠀀𠀀"]
)
def test_no_character_that_is_spelled_in_bytes_is_cut(
    tokenizer: Tokenizer, line: str, longest: int
) -> None:
    parts = cut(tokenizer, line, longest)

    assert "\ufffd" not in "".join(parts)
    assert "".join(parts).replace(" ", "") == line.replace(" ", "")


@pytest.mark.parametrize(
    "line", ["Gehen nach St. Gallen", "Tiere, z. B. Igel", "Dr. Mabuse und Prof. Bernhardi"]
)
def test_no_sentence_ends_after_an_abbreviation(tokenizer: Tokenizer, line: str) -> None:
    assert SplitQuality.SENTENCE not in split_qualities(line, tokenizer.encode_spans([line])[0])


@pytest.mark.parametrize("line", ["e\u0301" * 30, "👨\u200d👩\u200d👧" * 9, "❤\ufe0f" * 20])
def test_marks_stay_with_their_letter(line: str) -> None:
    """Each character is a token, so that only combining marks forbid a cut."""
    spans = [(place, place + 1) for place in range(len(line))]
    qualities = split_qualities(line, spans)

    parts = split(range(len(line)), qualities, 8)

    texts = ["".join(line[i] for i in part) for part in parts]
    assert "".join(texts) == line
    assert all(text[0] in "e👨❤" for text in texts)


def test_a_character_longer_than_a_part_is_cut_after_all() -> None:
    assert split([1, 2, 3, 4, 5], [SplitQuality.CHARACTER] * 5, 2) == [[1, 2], [3, 4], [5]]
