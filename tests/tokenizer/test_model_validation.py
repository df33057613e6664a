"""Crafted SentencePiece models are refused before SentencePiece reads them."""

import contextlib
import struct
from collections.abc import Callable

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sentencepiece_bytes import (
    MODEL,
    PIECES,
    charsmap,
    delimited,
    fixed32,
    number,
    piece,
    trie,
)  # fmt: skip
from tfm_cli.tokenizer import model_file as module
from tfm_cli.tokenizer.model_file import check_charsmap, validate_model


def refused(model: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_model(model)


def test_plain_model_is_let_through() -> None:
    assert validate_model(MODEL) == b""


CRAFTED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it has 0 pieces"),
    "a very long piece (#1263)": (MODEL + piece(b"a" * 100_000), "has 100000 bytes, expected 1 to"),
    "a piece of 1025 bytes": (MODEL + piece(b"a" * 1025), "its piece 4 has 1025 bytes"),
    "an empty piece": (MODEL + piece(b""), "has 0 bytes"),
    "NUL in a piece (#1308)": (MODEL + piece(b"a\0b"), "none of them NUL"),
    "a score that is no number": (
        piece(b"a", score=float("nan")) + MODEL, "its piece 0 has the score nan"
    ),
    "an infinite score": (piece(b"a", score=float("-inf")) + MODEL, "has the score -inf"),
    "an unknown type": (piece(b"a", kind=7) + MODEL, "has the unknown type 7"),
    "type 0": (MODEL + piece(b"a", kind=0), "has the unknown type 0"),
    "a field that no piece has": (
        MODEL + delimited(1, delimited(1, b"a") + delimited(200, b"x")), "has a field 200"
    ),
    "a piece that is a number": (MODEL + number(1, 5), "its field 1 is a number"),
    "a field that no model has": (MODEL + delimited(77, b"x"), "it has a field 77"),
    "field 0": (MODEL + b"\x00\x01", "it has a field 0"),
    "a group": (MODEL + b"\x0b" * 1000, "it has a field of the form 3"),
    "a length beyond the end": (MODEL + b"\x0a\xff\xff\x7f", "it ends within its field 1"),
    "a length of ten bytes": (MODEL + b"\x0a" + b"\xff" * 9 + b"\x01", "it ends within its field"),
    "a number without an end": (MODEL + b"\x0a" + b"\xff" * 11, "a number of too many digits"),
    "a torn number": (MODEL + b"\x8a", "it ends within a number"),
    "an unknown algorithm": (MODEL + delimited(2, number(3, 9)), "its setting 3 is 9, expected"),
    "a very long word": (
        MODEL + delimited(2, delimited(44, b"x" * 70_000)), "its setting 44 has 70000 bytes"
    ),
    "very many words": (
        MODEL + delimited(2, delimited(30, b"x" * 60_000) * 80), "its setting 30 has"
    ),
    "very much to try": (MODEL + delimited(4, b"\x0a\x00" * 40_000), "80000 bytes of self-test s"),
    "a normalizer's long name": (
        MODEL + delimited(3, delimited(1, b"x" * 70_000)), "its normalizer's setting 1 has"
    ),
    "65 nested symbols (#1267)": (
        MODEL + b"".join(piece(b"x" * n, kind=4) for n in range(1, 66)), "more than 64 symbols"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_model_is_refused(name: str) -> None:
    refused(*CRAFTED[name])


def test_too_many_pieces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIECES", 99)

    refused(b"".join(piece(b"p%d" % n) for n in range(120)), "it has more pieces, expected 1 to 99")


def test_64_nested_symbols_are_let_through() -> None:
    validate_model(MODEL + b"".join(piece(b"x" * n, kind=4) for n in range(1, 65)))


CHARSMAPS: dict[str, tuple[bytes, str]] = {
    "truncated": (b"abc", "is truncated"),
    "huge": (bytes((1 << 20) + 1), "has 1048577 bytes, expected at most 1048576"),
    "a table beyond its end": (charsmap([0] * 256, length=1 << 20), "array of 1048576 bytes"),
    "no table": (charsmap([]), "array of 0 bytes"),
    "half a block": (charsmap([0] * 100), "array of 400 bytes"),
    "a text that lets memory run out": (
        charsmap(trie(ord("a"), text_at=0), texts=b"x" * 257 + b"\0"), "of more than 256 bytes"
    ),
    "no texts": (charsmap([0] * 256, texts=b""), "array of 1024 bytes"),
    "an unterminated text": (charsmap([0] * 256, texts=b"x"), "an unterminated replacement"),
    "a value at the root (#1272)": (charsmap([1 << 31 | 0x7FFFFC00] + [0] * 255), "with a root"),
    "a far step from the root (#1269)": (charsmap([0x7FFFFC00] + [0] * 255), "unit 0 points out"),
    "a far step elsewhere": (charsmap([0] * 255 + [1 << 20]), "unit 255 points outside the array"),
    "a near step across the end": (charsmap([0] * 255 + [1 << 18]), "unit 255 points out"),
    "a text beyond the last (#1265)": (
        charsmap(trie(ord("a"), text_at=2), texts=b"x\0"), "points beyond the replacements"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHARSMAPS)
def test_crafted_normalizer_is_refused(name: str) -> None:
    table, message = CHARSMAPS[name]

    refused(MODEL + delimited(3, delimited(2, table)), message)
    refused(MODEL + delimited(5, delimited(2, table)), message)


def test_valid_custom_normalizer_is_accepted_and_returned() -> None:
    table = charsmap(trie(ord("a"), text_at=0), texts=b"x\0")

    assert validate_model(MODEL + delimited(3, delimited(2, table))) == table


def test_normalizers_of_sentencepiece_are_known() -> None:
    known = {"nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"}
    for name in known:
        normalizer = sentencepiece.SentencePieceNormalizer(rule_name=name)
        result = [
            value
            for field, _, value in module.fields(normalizer.serialized_model_proto())
            if field == 3 and isinstance(value, bytes)
        ]
        for table in (v for f, _, v in module.fields(result[0]) if f == 2 and isinstance(v, bytes)):
            assert not check_charsmap(table)
            known = known - {name}
    assert not known


def test_normalizers_of_sentencepiece_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    from tfm_cli.tokenizer import model_file as checked

    monkeypatch.setattr(checked, "_KNOWN_CHARSMAPS", set())
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name="nfkc_cf")

    assert validate_model(MODEL + normalizer.serialized_model_proto()[0:]) != b""


in_its_own_time = settings(deadline=None, max_examples=100)


@in_its_own_time
@given(st.binary(max_size=300))
def test_any_bytes_are_a_model_or_are_refused(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        validate_model(content)


@in_its_own_time
@given(st.data())
def test_walk_is_the_same_however_pieces_are_written(data: st.DataObject) -> None:
    """Check that the fast path for common pieces gives the same result as the slow one."""
    texts = st.binary(max_size=4)
    scores = st.sampled_from([0.0, -1.5, float("inf"), float("nan"), -3e38])
    rows = data.draw(st.lists(st.tuples(texts, scores, st.integers(0, 8)), max_size=8))
    usual = b"".join(piece(t, score=s, kind=k) for t, s, k in rows) + b"".join(PIECES)
    padding = delimited(2, delimited(1, b"x" * 200))  # otherwise all pieces are too near the end

    def outcome(change: Callable[[bytes], bytes]) -> str:
        try:
            return repr(validate_model(change(usual)))
        except ValueError as error:
            return str(error)

    # After another field, each piece is checked by the slow path.
    assert outcome(lambda pieces: pieces + padding) == outcome(lambda pieces: padding + pieces)


def test_score_bytes_are_those_of_a_float() -> None:
    assert fixed32(2, 1.0) == b"\x15" + struct.pack("<f", 1.0)
