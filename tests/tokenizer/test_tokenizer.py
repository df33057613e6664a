import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.errors import ModelError
from tfm_cli.tokenizer.model_file import MAX_MODEL_BYTES
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

TEXT = ["the cat sat on the mat", "ein Hund läuft über die Straße", "日本語 の 文", "42 ½ ﬁ"] * 25

texts = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))


def learned(model_type: str, normalization: str) -> Tokenizer:
    config = TokenizerConfig(
        vocab_size=330, model_type=model_type, normalization_rule_name=normalization
    )
    return Tokenizer(train_tokenizer(TEXT, config, seed=1, soft_limit=True))


MODELS = {
    f"{kind}-{normalization}": learned(kind, normalization)
    for kind, normalization in [
        ("unigram", "nmt_nfkc"),
        ("unigram", "identity"),
        ("bpe", "nmt_nfkc"),
        ("char", "identity"),
        ("word", "nmt_nfkc"),  # without byte fallback, its ids lose unknown words
    ]
}
UNIGRAM = MODELS["unigram-nmt_nfkc"]
every_model = pytest.mark.parametrize("tokenizer", MODELS.values(), ids=list(MODELS))


def reference(tokenizer: Tokenizer) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)


def normalized(tokenizer: Tokenizer, text: str) -> str:
    """Return a text as the model's normalizer changes it, with blanks."""
    return str(reference(tokenizer).Normalize(text)).replace("▁", " ").removeprefix(" ")


def single_blanks(text: str) -> str:
    return " ".join(word for word in text.split(" ") if word)


@every_model
@settings(max_examples=30, deadline=None)
@given(lines=st.lists(st.text(st.sampled_from("a ▁ ½ ﬁ 日\u00a0\u200b\tz"), max_size=6)))
def test_lines_that_are_not_restored_are_those_that_decode_to_others(
    tokenizer: Tokenizer, lines: list[str]
) -> None:
    ids = tokenizer.encode(lines)

    result = tokenizer.changed_lines(lines, ids)

    restored = list(zip(lines, tokenizer.decode(ids), strict=True))
    assert result == [
        (index, text)
        for index, (line, text) in enumerate(restored)
        if single_blanks(line) != single_blanks(text)
    ]


@pytest.mark.parametrize("kind", [kind for kind in MODELS if "identity" in kind])
@settings(max_examples=50, deadline=None)
@given(text=texts.filter(lambda text: "▁" not in text))
def test_text_without_a_rule_comes_back_but_for_blanks(kind: str, text: str) -> None:
    tokenizer = MODELS[kind]

    assert tokenizer.decode(tokenizer.encode([text])) == [single_blanks(text)]


@pytest.mark.parametrize("kind", [kind for kind in MODELS if "word" not in kind])
@settings(max_examples=30, deadline=None)
@given(text=texts)
def test_ids_decode_to_the_normalized_text(kind: str, text: str) -> None:
    tokenizer = MODELS[kind]
    once = tokenizer.decode(tokenizer.encode([text]))

    assert once == [normalized(tokenizer, text)]
    assert tokenizer.decode(tokenizer.encode(once)) == once


@every_model
@settings(max_examples=30, deadline=None)
@given(text=texts)
def test_pieces_decode_to_the_normalized_text(tokenizer: Tokenizer, text: str) -> None:
    pieces = tokenizer.encode_pieces([text])

    assert tokenizer.decode_pieces(pieces) == [normalized(tokenizer, text)]
    assert [tokenizer.piece_ids(pieces[0])] == tokenizer.encode([text])


@every_model
@settings(max_examples=20, deadline=None)
@given(lines=st.lists(texts, max_size=8))
def test_a_batch_is_encoded_as_sentencepiece_encodes_each_line(
    tokenizer: Tokenizer, lines: list[str]
) -> None:
    processor = reference(tokenizer)

    assert tokenizer.encode(lines) == [processor.Encode(line, return_type=int) for line in lines]
    assert tokenizer.encode_pieces(lines) == [
        processor.Encode(line, return_type=str) for line in lines
    ]


def test_a_large_batch_keeps_its_order() -> None:
    lines = [f"line {number} of the mat" for number in range(3000)]

    assert UNIGRAM.encode(lines) == [UNIGRAM.encode([line])[0] for line in lines]
    assert UNIGRAM.decode(UNIGRAM.encode(lines)) == lines


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u3000\u200b"])
def test_blank_line_has_no_ids(blank: str) -> None:
    assert UNIGRAM.encode([blank, "a", blank])[::2] == [[], []]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\x00", "\x1b[0m", "\ufffe", "\u2028"])
def test_no_text_is_refused(text: str) -> None:
    UNIGRAM.decode(UNIGRAM.encode([text]))
    UNIGRAM.decode_pieces(UNIGRAM.encode_pieces([text]))


def test_decoded_text_never_has_a_line_feed() -> None:
    everything = list(range(UNIGRAM.vocab_size))
    pieces = [piece for piece, _ in UNIGRAM.scored_pieces]

    assert "<0x0A>" in pieces
    assert "\n" not in UNIGRAM.decode([everything])[0]
    assert "\n" not in UNIGRAM.decode_pieces([pieces])[0]


def test_bytes_that_are_no_text_decode_to_replacement_characters() -> None:
    assert UNIGRAM.decode_pieces([["<0xFF>", "▁", "<0xC3>"]]) == ["\ufffd \ufffd"]


@pytest.mark.parametrize("batch", [[], [[]], [[], [5], []]])
def test_as_many_texts_as_sequences(batch: Sequence[Sequence[int]]) -> None:
    assert len(UNIGRAM.decode(batch)) == len(batch)


def test_empty_sequences_of_pieces_decode_to_empty_texts() -> None:
    assert UNIGRAM.decode_pieces([]) == []
    assert UNIGRAM.decode_pieces([[], ["▁the", "▁mat"], []]) == ["", "the mat", ""]


def test_special_pieces_have_the_ids_0_to_3_and_give_no_text() -> None:
    assert UNIGRAM.pieces[:4] == ("<pad>", "<unk>", "<s>", "</s>")
    assert (UNIGRAM.unk_id, UNIGRAM.start_id, UNIGRAM.eos_id) == (1, 2, 3)
    assert UNIGRAM.banned_ids == (0, 1, 2)
    assert UNIGRAM.decode([[0, 2, *UNIGRAM.encode(["cat"])[0], 3]]) == ["cat"]


def test_special_pieces_in_a_text_are_text() -> None:
    text = "<s> </s> <pad> <unk> <0x41>"

    assert UNIGRAM.decode(UNIGRAM.encode([text])) == [text]
    assert not {0, 1, 2, 3} & set(UNIGRAM.encode([text])[0])


def test_special_pieces_are_not_sampled() -> None:
    assert UNIGRAM.unsampled_ids == {0, 1, 2, 3, *UNIGRAM.byte_values}


def test_scored_pieces_stand_in_the_order_of_their_ids() -> None:
    processor = reference(UNIGRAM)

    assert UNIGRAM.scored_pieces == [
        (processor.IdToPiece(i), processor.GetScore(i)) for i in range(UNIGRAM.vocab_size)
    ]


def test_a_model_is_loaded_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(UNIGRAM.model_bytes)

    tokenizer = Tokenizer.load(path)

    assert tokenizer.model_bytes == UNIGRAM.model_bytes
    assert tokenizer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def serialized(*pieces: tuple[bytes, int]) -> bytes:
    """Return a SentencePiece model with these pieces and their types (1 normal … 3 control)."""
    model = b""
    for text, kind in pieces:
        score = struct.pack("<f", -float(len(model)))
        message = bytes([0x0A, len(text)]) + text + b"\x15" + score + bytes([0x18, kind])
        model += bytes([0x0A, len(message)]) + message
    return model


def test_a_foreign_model_without_begin_and_padding_starts_with_the_end() -> None:
    tokenizer = Tokenizer(serialized((b"<unk>", 2), (b"</s>", 3), (b"a", 1)))

    assert tokenizer.start_id == tokenizer.eos_id == 1
    assert tokenizer.banned_ids == (0,)


def test_a_model_without_an_end_piece_is_refused() -> None:
    with pytest.raises(ModelError, match=r"x\.model: has no `</s>`"):
        Tokenizer(serialized((b"<unk>", 2), (b"a", 1)), name="x.model")


@pytest.mark.parametrize(
    "pieces",
    [
        [(b"</s>", 3)],
        [(b"<unk>", 2), (b"</s>", 3), (b"\xff", 1)],
        [(b"<unk>", 2), (b"</s>", 3), (b"a", 1), (b"a", 1)],
    ],
    ids=["no unknown piece", "a piece that is no UTF-8", "the same piece twice"],
)
def test_a_broken_model_is_refused(pieces: list[tuple[bytes, int]]) -> None:
    with pytest.raises(ModelError, match="is not a SentencePiece model"):
        Tokenizer(serialized(*pieces))


@settings(max_examples=50, deadline=None)
@given(junk=st.binary(max_size=100))
def test_junk_is_no_model(junk: bytes) -> None:
    with pytest.raises(ModelError, match=r"x: (is not a SentencePiece model|has no `</s>`)"):
        Tokenizer(junk, name="x")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999999])
def test_a_model_that_is_cut_off_is_refused(share: float) -> None:
    cut = int(len(UNIGRAM.model_bytes) * share)

    with pytest.raises(ModelError, match="is not a SentencePiece model"):
        Tokenizer(UNIGRAM.model_bytes[:cut])


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no\.model: cannot be read: No such file"):
        Tokenizer.load(tmp_path / "no.model")


def test_a_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a directory, expected a SentencePiece model"):
        Tokenizer.load(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ModelError, match="is not a regular file, expected a SentencePiece model"):
        Tokenizer.load(tmp_path / "pipe")


def test_a_model_over_64_mib_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.model"
    with path.open("wb") as stream:
        stream.truncate(MAX_MODEL_BYTES + 1)

    with pytest.raises(ModelError, match=r"has 67108865 bytes, expected at most 67108864"):
        Tokenizer.load(path)


def test_torch_is_not_imported() -> None:
    program = (
        "import sys, tfm_cli.tokenizer.tokenizer; assert not {'torch', 'numpy'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
