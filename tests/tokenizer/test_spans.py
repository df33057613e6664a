"""Spans of tokens in a line and in a translation."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

TEXT = ["the cat sat on the mat", "ein Hund läuft über die Straße", "日本語 の 文", "42 ½ ﬁ"] * 25
BYTES = Tokenizer(train_tokenizer(TEXT, TokenizerConfig(vocab_size=330), seed=1, soft_limit=True))


def with_vocabulary(tokenizer: Tokenizer) -> Tokenizer:
    pieces = ("</s>", "<unk>", *tokenizer.pieces[4:], ">>deu<<", "<pad>")
    return Tokenizer(tokenizer.model_bytes, Vocabulary(pieces))


@given(st.lists(st.text(alphabet="ab \t\u00a0½…日e\u0301\ud800☃>", max_size=12), max_size=4))
@settings(max_examples=60, deadline=None)
def test_spans_of_a_line_are_in_order_and_leave_out_nothing_but_blanks(lines: list[str]) -> None:
    for tokenizer in (BYTES, with_vocabulary(BYTES)):
        lines = [*lines, ">>deu<< ab"]
        for line, spans, ids in zip(
            lines, tokenizer.encode_spans(lines), tokenizer.encode(lines), strict=True
        ):
            assert len(spans) == len(ids)
            covered = [place for begin, end in spans for place in range(begin, end)]
            assert covered == sorted(set(covered))
            left_out = "".join(c for place, c in enumerate(line) if place not in covered)
            assert not left_out.strip()


@given(st.lists(st.integers(min_value=0, max_value=BYTES.vocab_size - 1), max_size=10))
@settings(max_examples=100, deadline=None)
def test_spans_of_a_translation_are_where_it_grows(ids: list[int]) -> None:
    """Each further token extends the decoded text by its span."""
    for tokenizer in (BYTES, with_vocabulary(BYTES)):
        spans = tokenizer.decode_spans(ids)

        (text,) = tokenizer.decode([ids])
        assert len(spans) == len(ids)
        assert [end for _, end in spans[:-1]] == [begin for begin, _ in spans[1:]]
        assert (spans[0][0], spans[-1][1]) == (0, len(text)) if ids else text == ""
        for count in range(1, len(ids)):
            (earlier,) = tokenizer.decode([ids[:count]])
            if "\ufffd" not in text + earlier:  # otherwise a character is incomplete
                assert spans[count - 1][1] == len(earlier)
