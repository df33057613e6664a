"""Seeds derived from several values."""

import hashlib


def random_key(*parts: int | str) -> int:
    """Return a number in [0, 2**63) that depends on all parts and is the same on every machine."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
