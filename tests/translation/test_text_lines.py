import pytest

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary
from tfm_cli.translation.segments import on_one_line, restored, text_lines, unified


@pytest.fixture(scope="module")
def tagged() -> Tokenizer:
    config = TokenizerConfig(vocab_size=20, byte_fallback=False)
    model = train_tokenizer(["abc def"], config, seed=1, soft_limit=True)
    pieces = ("</s>", "<unk>", *Tokenizer(model).pieces[4:], ">>deu<<", ">>fra<<", "<pad>")
    return Tokenizer(model, Vocabulary(pieces))


@pytest.mark.parametrize("text", ["", "a", "\n", "\r\na\n\r\u2028b\x85", "\n\n a\r\r\n"])
def test_breaks_come_back(text: str) -> None:
    plain, breaks = unified(text)

    assert len(breaks) in (0, plain.count("\n"))
    assert restored(plain, breaks) == text


def test_blank_lines_are_left_out_on_one_line() -> None:
    assert on_one_line("\na\n\nb c\n") == "a b c"
    assert on_one_line("a  b") == "a  b"


def test_line_without_a_tag_has_the_one_before_it(tagged: Tokenizer) -> None:
    text = "a\n>>deu<< b\n\u200b\nc\n>>fra<< \ufeff\n d"

    lines = list(text_lines(text, tagged))

    assert [(line.number, line.text) for line in lines] == [
        (0, "a"), (1, ">>deu<< b"), (3, ">>deu<< c"), (5, ">>fra<<  d"),
    ]  # fmt: skip
    for line in lines:
        begin, end = line.span_in_text(len(line.text) - 1, len(line.text))
        assert text[begin:end] == line.text[-1:]
        assert text[: line.begin].count("\n") == line.number
    begin, end = lines[2].span_in_text(0, len(">>deu<<"))
    assert text[begin:end] == ">>deu<<"
