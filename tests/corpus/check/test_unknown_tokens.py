from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import invoke
from tfm_cli.corpus.check.statistics import UnknownTokens
from tfm_cli.tokenizer.tokenizer import Tokenizer

TEXT = "".join(f"the cat {number % 10} sat on a man\n" for number in range(50))


@pytest.fixture(params=["char", "word"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """Return a tokenizer without `z` and `日`."""
    arguments = [
        "tokenize", "train", "--model-prefix", str(tmp_path / "m"), "--vocab-size", "30",
        "--model-type", request.param, "--no-byte-fallback", "--no-hard-vocab-limit", "-q",
    ]  # fmt: skip
    assert invoke(arguments, TEXT).code == 0
    return Tokenizer.load(tmp_path / "m.model")


def test_unknown_tokens_are_counted_with_their_causes(
    tokenizer: Tokenizer,
) -> None:
    lines = ["the cat sat", "a zoo", "日本 日", "zz z", "tam tam"] * 3
    encoded = tokenizer.encode(lines)
    unknown = UnknownTokens(tokenizer)

    unknown.add(lines[:7], encoded[:7])
    unknown.add(lines[7:], encoded[7:])

    assert unknown.count == sum(Counter(ids)[tokenizer.unk_id] for ids in encoded)
    assert unknown.count > 0
    causes = dict(unknown.commonest(10))
    assert {causes[c] for c in ("日", "本", "z")} == {6, 3, 12}
    # To a tokenizer of words, a word of known letters is unknown; to one of characters it is not.
    assert causes.get("tam", 0) == (6 if "▁cat" in tokenizer.pieces else 0)
    assert unknown.commonest(1) == [("z", 12)]


def test_characters_of_special_pieces_are_not_known(tokenizer: Tokenizer) -> None:
    unknown = UnknownTokens(tokenizer)

    unknown.add(["dunk"], tokenizer.encode(["dunk"]))

    assert {"<unk>", "<pad>"} < set(tokenizer.pieces)
    assert set(dict(unknown.commonest(9))) == set("duk")


def test_rarest_causes_are_dropped_beyond_the_limit(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfm_cli.corpus.check.statistics._MAX_CAUSES", 10)
    unknown = UnknownTokens(tokenizer)
    lines = [f"日 {chr(0x4E00 + number)}" for number in range(100)]
    for line in lines:
        unknown.add([line], tokenizer.encode([line]))

    assert len(unknown.commonest(1000)) <= 10
    assert unknown.commonest(1) == [("日", 100)]
