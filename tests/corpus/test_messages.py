import io
from collections import Counter

import numpy as np
import pytest

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.corpus import messages
from tfm_cli.corpus.blocks import Block
from tfm_cli.corpus.encoder_process import serve
from tfm_cli.corpus.encoding import EncodedBlock, encode_block
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.messages import read_frame, write_frame
from tfm_cli.errors import DataError
from tfm_cli.text.repairs import Mended
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

BLOCK = Block(0, "lines", ("a", "b"), 7, (False, True), (b"a b\n\0c\n", b"b\r\na a\r\n"), 0.5)


@pytest.fixture
def tokenizers() -> TokenizerPair:
    """Two with an order of pieces that is not SentencePiece's own."""
    settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
    model = train_tokenizer(["a b c"], settings, seed=1, soft_limit=True)
    pieces = ("</s>", "<unk>", "▁c", "▁b", "▁a", "<pad>")
    vocabulary = Vocabulary(pieces, eos="</s>", unk="<unk>", start="<pad>", banned=("<pad>",))
    return TokenizerPair(Tokenizer(model, vocabulary), Tokenizer(model, vocabulary))


def assert_equal(found: EncodedBlock, wanted: EncodedBlock) -> None:
    both = zip(
        (*found.ids, *found.lengths, found.hashes),
        (*wanted.ids, *wanted.lengths, wanted.hashes),
        strict=True,
    )
    for one, other in both:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert found.dropped == wanted.dropped
    assert found.mended == wanted.mended
    assert found.round_trips == wanted.round_trips


def test_process_answers_what_the_function_gives(tokenizers: TokenizerPair) -> None:
    filters = Filters(5, duplicates=True)
    requests, answers = io.BytesIO(), io.BytesIO()
    write_frame(requests, *messages.of_work(tokenizers, filters))
    for _ in range(2):
        write_frame(requests, *messages.of_block(BLOCK))
    requests.seek(0)

    serve(requests, answers)

    wanted = encode_block(BLOCK, tokenizers, filters, threads=1)
    assert wanted.ids[0].tolist() == [4, 3, 2]
    assert wanted.round_trips[1].unknown == 0
    assert wanted.round_trips[0].lines == 2
    assert wanted.mended[0] == Mended(Counter(nul=1), {"nul": 9})
    answers.seek(0)
    for _ in range(2):
        frame = read_frame(answers)
        assert frame is not None
        assert_equal(messages.to_encoded(frame), wanted)
    assert read_frame(answers) is None


def test_error_comes_through_with_its_hint() -> None:
    frame = messages.of_error(DataError("wrong", hint="right it"))

    with pytest.raises(DataError, match="wrong") as caught:
        messages.to_encoded(frame)

    assert caught.value.hint == "right it"


def test_message_that_is_cut_off_is_no_message() -> None:
    stream = io.BytesIO()
    write_frame(stream, {"a": 1}, [b"xyz", b""])

    stream.seek(0)
    assert read_frame(stream) == ({"a": 1}, [b"xyz", b""])
    for size in range(1, len(stream.getvalue())):
        with pytest.raises(EOFError):
            read_frame(io.BytesIO(stream.getvalue()[:size]))


def test_no_work_is_no_error() -> None:
    serve(io.BytesIO(), io.BytesIO())
