"""A SentencePiece model walked through in Python, before SentencePiece's own code gets to read it.

That is C++ which was written for models of one's own. Several ways are known in which a crafted
one made it read outside its memory (CVE-2026-1260, and its issues #1263, #1265, #1267, #1269 and
#1272); here whatever is not as SentencePiece itself writes it is refused.

Source: `sentencepiece_model.proto`, and the encoding at https://protobuf.dev/programming-guides.
"""

import hashlib
import math
import struct
from collections.abc import Iterator

# What a SentencePiece model changes characters by: a table whose every link is checked here.
#
# A length, a double array of 32-bit units in which each step goes to another unit, and the texts
# that are written, each ended by NUL. Whatever SentencePiece looks up then stays inside of it.
#
# Source: Darts-clone 0.32, https://github.com/s-yata/darts-clone, whose search this follows.

_MAX_BYTES = 1 << 20  # those that SentencePiece brings along have a fourth of it
MAX_TEXT_BYTES = 256  # of one; NFKC has none of 64, and lines get as many times as long
_BLOCK = 256  # units, as many as a byte has values
# SHA-256 of nmt_nfkc, nfkc, nmt_nfkc_cf and nfkc_cf, as SentencePiece 0.2 brings them along.
_KNOWN = {
    "1e2c7b43d3ee9755ceaa2ac335e253d8703604e0249ee1e81156c92b46423844",
    "7e46d9e08af4b6a37991b04fb8388644c1595a0abcd0f26d6a5d575e2a3663ea",
    "2c03512e62f9ed965ec90d85314211b63b5b8aa0395311ea2147eec9ff738907",
    "d8dfef3d6db0eef0742f8b55a73aee7fce6c1e21d26a09b8d3d4b52c42a791cb",
}


def check_charsmap(charsmap: bytes) -> bool:
    """Check a compiled table; returns False for one of those that SentencePiece brings along.

    Raises:
        ValueError: a step or a text of it would lie outside of it, or a text is far too long.
    """
    if len(charsmap) > _MAX_BYTES:
        raise ValueError(f"its normaliser has {len(charsmap)} bytes, wanted at most {_MAX_BYTES}")
    if hashlib.sha256(charsmap).hexdigest() in _KNOWN:
        return False
    if len(charsmap) < 4:
        raise ValueError("its normaliser is torn")
    (num_bytes,) = struct.unpack("<I", charsmap[:4])
    texts = charsmap[4 + num_bytes :]
    if num_bytes % (4 * _BLOCK) or not 0 < num_bytes < len(charsmap) - 4:
        raise ValueError(f"its normaliser has a table of {num_bytes} bytes, which none has")
    if not texts.endswith(b"\0"):
        raise ValueError("its normaliser has texts without an end")
    units = struct.unpack(f"<{num_bytes // 4}I", charsmap[4 : 4 + num_bytes])
    if units[0] >> 31 or units[0] & 0x1FF:
        raise ValueError("its normaliser begins with a unit that is no beginning")
    size = len(units)
    for place, unit in enumerate(units):
        if unit >> 31:  # a value, which is looked at from where the step to it is taken
            continue
        target = place ^ ((unit >> 10) << ((unit & 0x200) >> 6))
        if target | (_BLOCK - 1) >= size:
            raise ValueError(f"its normaliser's unit {place} leads out of the table")
        if unit >> 8 & 1:
            begin = units[target] & 0x7FFFFFFF
            if begin >= len(texts):
                raise ValueError(f"its normaliser's unit {place} has a text beyond the last")
            if texts.find(b"\0", begin, begin + MAX_TEXT_BYTES + 1) < 0:
                told = f"has a text of more than {MAX_TEXT_BYTES} bytes"
                raise ValueError(f"its normaliser's unit {place} {told}")
    return True


MAX_PIECES = 1_000_000
_MAX_PIECE_BYTES = 1024
_MAX_TEXT_BYTES = 1 << 16  # of a word in the specifications
_MAX_LIST_BYTES = 1 << 22  # of all words of one list there, such as of the control symbols
_MAX_SAMPLES_BYTES = 1 << 16  # which are encoded when the model is loaded
_MAX_NESTED = 64  # user-defined symbols that begin with each other, for which it has room
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_USER_DEFINED = 4

# Fields by number, as the description of the format has them.
_PIECES, _TRAINER, NORMALIZER, _SAMPLES, DENORMALIZER = 1, 2, 3, 4, 5
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, CHARSMAP = 3, 2

Field = tuple[int, int, bytes | int]  # number, how it is written, value


def walk_model(model: bytes) -> bytes:
    """Check a serialized model; returns its normalisers that SentencePiece does not bring along.

    Raises:
        ValueError: it is no model, or has something that SentencePiece does not write.
    """
    at, num_pieces, user_defined = _plain_pieces(model)
    unusual, num_samples = b"", 0
    for number, _, value in fields(model, at):
        if not isinstance(value, bytes):
            raise ValueError(f"its field {number} is a number")
        if number == _PIECES:
            piece, kind = _walk_piece(value, num_pieces)
            num_pieces += 1
            if kind == _USER_DEFINED:
                user_defined.append(piece)
        elif number == _TRAINER:
            _walk_words(value, {_MODEL_TYPE: (1, 4)})
        elif number in (NORMALIZER, DENORMALIZER):
            unusual += _walk_normalizer(value)
        elif number == _SAMPLES:
            num_samples += len(value)
            if num_samples > _MAX_SAMPLES_BYTES:
                raise ValueError(f"it has {num_samples} bytes of samples to be tried")
        else:
            raise ValueError(f"it has a field {number}, which no model has")
        if num_pieces > MAX_PIECES:
            break
    if not 0 < num_pieces <= MAX_PIECES:
        found = num_pieces if num_pieces <= MAX_PIECES else "more"
        raise ValueError(f"it has {found} pieces, wanted 1 to {MAX_PIECES}")
    _check_nesting(user_defined)
    return unusual


def user_defined_pieces(model: bytes) -> list[str]:
    """Return the user-defined pieces of a serialized model that was walked through before."""
    at, _, user_defined = _plain_pieces(model)
    for number, _, value in fields(model, at):
        if number == _PIECES and isinstance(value, bytes):
            piece, kind = _walk_piece(value, 0)
            if kind == _USER_DEFINED:
                user_defined.append(piece)
    return [piece.decode("utf-8", "replace") for piece in user_defined]


def _plain_pieces(model: bytes) -> tuple[int, int, list[bytes]]:
    """Where the first piece stands that is not written as most are, and what was before it.

    A vocabulary has tens of thousands, so these are looked at all at once: a piece of less than
    100 bytes, a score, and a type if it is not a usual one.

    Returns:
        The place, how many pieces stand before it, and those of them that are user-defined.
    """
    at, count, user_defined = 0, 0, list[bytes]()
    size = len(model) - 128  # what is looked at is there
    while at < size and count < MAX_PIECES:
        length, text_length = model[at + 1], model[at + 3]
        text_end = at + 4 + text_length
        if (
            model[at] != 0x0A
            or model[at + 2] != 0x0A
            or not 0 < text_length < 100
            or model[text_end] != 0x15
            or (model[text_end + 4] & 0x7F == 0x7F and model[text_end + 3] & 0x80)
            or model.find(0, at + 4, text_end) >= 0
        ):
            break
        if length == text_length + 9 and model[text_end + 5] == 0x18:
            kind = model[text_end + 6]
            if not 1 <= kind <= 6:
                break
            if kind == _USER_DEFINED:
                user_defined.append(model[at + 4 : text_end])
        elif length != text_length + 7:
            break
        at += 2 + length
        count += 1
    return at, count, user_defined


def _walk_piece(message: bytes, index: int) -> tuple[bytes, int]:
    """The text of a piece, and its type."""
    piece, kind, score = b"", 1, 0.0
    for number, form, value in fields(message):
        if number == _PIECE and isinstance(value, bytes):
            piece = value
        elif number == _SCORE and form == _FIXED32 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == _TYPE and isinstance(value, int):
            kind = value
        else:
            raise ValueError(f"its piece {index} has a field {number}, which no piece has")
    if not 0 < len(piece) <= _MAX_PIECE_BYTES or b"\0" in piece:
        told = f"has {len(piece)} bytes, wanted 1 to {_MAX_PIECE_BYTES}, none of them NUL"
        raise ValueError(f"its piece {index} {told}")
    if not math.isfinite(score):
        raise ValueError(f"its piece {index} has the score {score}")
    if not 1 <= kind <= 6:
        raise ValueError(f"its piece {index} has the type {kind}, which is not known")
    return piece, kind


def _walk_words(message: bytes, ranges: dict[int, tuple[int, int]]) -> None:
    """Check numbers and words of a specification."""
    lengths: dict[int, int] = {}
    for number, form, value in fields(message):
        if isinstance(value, int):
            low, high = ranges.get(number, (0, (1 << 64) - 1))
            if not low <= value <= high:
                raise ValueError(f"its setting {number} is {value}, wanted {low} to {high}")
        elif form == _BYTES:
            lengths[number] = lengths.get(number, 0) + len(value)
            if len(value) > _MAX_TEXT_BYTES or lengths[number] > _MAX_LIST_BYTES:
                raise ValueError(f"its setting {number} has {lengths[number]} bytes")


def _walk_normalizer(message: bytes) -> bytes:
    """What changes characters, unless SentencePiece brings it along itself."""
    unusual = b""
    for number, form, value in fields(message):
        if number == CHARSMAP and isinstance(value, bytes) and form == _BYTES:
            if value and check_charsmap(value):
                unusual += value
        elif isinstance(value, bytes) and len(value) > _MAX_TEXT_BYTES:
            raise ValueError(f"its normaliser's setting {number} has {len(value)} bytes")
    return unusual


def _check_nesting(symbols: list[bytes]) -> None:
    """Refuse more symbols that begin with each other than are looked for at one place."""
    if len(symbols) <= _MAX_NESTED:
        return
    nested: list[bytes] = []
    for symbol in sorted(symbols):
        while nested and not symbol.startswith(nested[-1]):
            nested.pop()
        nested.append(symbol)
        if len(nested) > _MAX_NESTED:
            raise ValueError(f"it has more than {_MAX_NESTED} symbols that begin with each other")


def fields(message: bytes, at: int = 0) -> Iterator[Field]:
    """The fields of a message from some place on, one after the other.

    Raises:
        ValueError: it is torn, or has groups, which are of an older form.
    """
    size = len(message)
    while at < size:
        key, at = _varint(message, at)
        number, form = key >> 3, key & 7
        if number == 0:
            raise ValueError("it has a field 0")
        if form == _VARINT:
            value, at = _varint(message, at)
            yield number, form, value
            continue
        if form == _BYTES:
            length, at = _varint(message, at)
        elif form in (_FIXED32, _FIXED64):
            length = 4 if form == _FIXED32 else 8
        else:
            raise ValueError(f"it has a field of the form {form}")
        if length > size - at:
            raise ValueError(f"it ends within its field {number}")
        yield number, form, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number that is written in as many bytes as it needs, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it has a number of too many digits")
