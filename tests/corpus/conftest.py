"""Hostile text for a corpus, and tokenizers for it."""

import random
from pathlib import Path

import pytest

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.corpus.sources import CorpusFile, aligned_files
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

_WORDS = ["a", "bb", "ccc", "dddd", "é", "ü", "ж", "漢字", "😀", "of", "the"]


@pytest.fixture(scope="session")
def bytes_pair() -> TokenizerPair:
    """Return a tokenizer for each side, both with byte fallback."""
    settings = TokenizerConfig(vocab_size=300, model_type="bpe")
    models = [
        train_tokenizer([" ".join(order)] * 3, settings, seed=1, soft_limit=True)
        for order in (_WORDS, _WORDS[::-1])
    ]
    source, target = (Tokenizer(model) for model in models)
    return TokenizerPair(source, target)


def hostile_lines(seed: int, count: int) -> list[bytes]:
    """Return lines without their ends: blank, with NUL, lone CR, odd separators, or long."""
    rng = random.Random(seed)
    odd = [b"", b" \t", "\u3000".encode(), "\u200b".encode(), b"\0", b"a\0b", b"\rx\ry", b"x\r",
           "a\u2028b\x85c".encode(), "\ufeffmark".encode(), b"of " * 300]  # fmt: skip
    lines = []
    for _ in range(count):
        if rng.random() < 0.2:
            lines.append(rng.choice(odd))
        else:
            lines.append(" ".join(rng.choices(_WORDS, k=rng.randint(1, 9))).encode())
    return lines


def write(path: Path, lines: list[bytes], *, end: bytes = b"\n", first: bytes = b"") -> str:
    """Write lines with this line end, after the bytes `first`."""
    path.write_bytes(first + b"".join(line + end for line in lines))
    return str(path)


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[CorpusFile, ...]:
    """Return two hostile files a side: one with a BOM and CRLF, one without a final line end."""
    first, second = hostile_lines(1, 700), hostile_lines(2, 700)
    third, fourth = hostile_lines(3, 300), hostile_lines(4, 300)
    sources = [
        write(tmp_path / "a.en", first, end=b"\r\n", first=b"\xef\xbb\xbf"),
        write(tmp_path / "b.en", third),
    ]
    targets = [write(tmp_path / "a.de", second), write(tmp_path / "b.de", fourth[:-1])]
    with Path(targets[1]).open("ab") as stream:
        stream.write(b"the end\r")
    return aligned_files(sources, targets)
