"""Crafted SentencePiece models are refused by every command that reads one."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import RunTfm
from tests.sentencepiece_bytes import MODEL, charsmap, delimited, piece
from tfm_cli.tokenizer.model_file import MAX_MODEL_BYTES

# Models as in the issues of SentencePiece, by the number of the issue.
CRAFTED: dict[str, tuple[bytes, str]] = {
    "1263": (MODEL + piece(b"a" * 200_000), "its piece 4 has 200000 bytes, expected 1 to 1024"),
    "1265": (
        MODEL
        + delimited(
            3, delimited(2, charsmap([1 << 10, 256 << 10 | 1 << 8] + [1 << 31 | 99] * 510))
        ),
        "points beyond the replacements",
    ),
    "1267": (
        MODEL + b"".join(piece(b"x" * n, kind=4) for n in range(1, 70)),
        "more than 64 symbols that begin with each other",
    ),
    "1269": (
        MODEL + delimited(3, delimited(2, charsmap([0x7FFFFC00] + [0] * 255))),
        "unit 0 points outside the array",
    ),
    "1272": (
        MODEL + delimited(3, delimited(2, charsmap([0xFFFFFC00] + [0] * 255))),
        "array does not begin with a root",
    ),
    "1308": (MODEL + piece(b"a\0b"), "none of them NUL"),
}


@pytest.mark.parametrize("report", CRAFTED)
def test_r41_crafted_tokenizer_is_refused_by_every_command(
    report: str, tmp_path: Path, run_tfm: RunTfm
) -> None:
    content, message = CRAFTED[report]
    path = tmp_path / "crafted.model"
    path.write_bytes(content)
    for arguments in (
        ["tokenize", "encode", "--model", str(path)],
        ["train", "--output", str(tmp_path / "model"), "--tokenizer", str(path)],
        ["check", "-s", "data/test.en", "-t", "data/test.fr", "--tokenizer", str(path)],
    ):
        result = run_tfm(arguments, "a\n")

        assert (result.code, result.out) == (4, ""), (arguments, result.err)
        assert result.err.startswith(f"error: {path}: is not a SentencePiece model: ")
        assert message in result.err
    assert not (tmp_path / "model").exists()


def test_r41_crafted_tokenizer_of_a_model_whose_hashes_fit_is_refused(
    tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    """Matching hashes prove that a model is unchanged, not that it is harmless."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, model)
    content, message = CRAFTED["1263"]
    (model / "tokenizer.model").write_bytes(content)
    config = json.loads((model / "config.json").read_bytes())
    del config["sha256"]
    sha256 = hashlib.sha256(content).hexdigest()
    config.update(tokenizer_sha256=sha256, tokenizer_files={"tokenizer.model": sha256})
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")

    result = run_tfm(["translate", "--model", str(model)], "one\n")

    assert (result.code, result.out) == (4, "")
    assert message in result.err


def test_r41_tokenizer_over_64_mib_is_refused_unread(tmp_path: Path, run_tfm: RunTfm) -> None:
    path = tmp_path / "huge.model"
    with path.open("wb") as stream:
        stream.truncate(MAX_MODEL_BYTES + 1)

    result = run_tfm(["tokenize", "encode", "--model", str(path)], "a\n")

    assert (result.code, result.out) == (4, "")
    assert "has 67108865 bytes, expected at most 67108864 for a SentencePiece model" in result.err
