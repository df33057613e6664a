"""Seeds that depend on several things, the same on every machine."""

import hashlib


def random_key(*parts: int | str) -> int:
    """A number in [0, 2**63) that depends on all parts, the same on every machine."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
