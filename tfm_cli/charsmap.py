"""What a SentencePiece model changes characters by: a table whose every link is checked here.

A length, a double array of 32-bit units in which each step goes to another unit, and the texts
that are written, each ended by NUL. Whatever SentencePiece looks up then stays inside of it.

Source: Darts-clone 0.32, https://github.com/s-yata/darts-clone, whose search this follows.
"""

import hashlib
import struct

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
