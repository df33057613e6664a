import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.errors import ModelError
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.translation.shortlist import Shortlist, load_shortlist, save_shortlist


@pytest.fixture(scope="module")
def joint() -> TokenizerPair:
    return TokenizerPair.joint(tokenizer_of("abcdefgh"))


def tokenizer_of(letters: str) -> Tokenizer:
    config = TokenizerConfig(vocab_size=40, model_type="char", byte_fallback=False)
    return Tokenizer(train_tokenizer([letters] * 20, config, seed=1, soft_limit=True))


def table_of(tokenizers: TokenizerPair) -> Shortlist:
    """Return a table: token 5 was aligned with 6 and 7, token 6 with 8, token 7 with none."""
    source_size, _ = tokenizers.vocab_sizes
    best, counts = [[-1, -1] for _ in range(source_size)], [[0, 0] for _ in range(source_size)]
    best[5], best[6] = [6, 7], [8, -1]
    counts[5], counts[6] = [3, 2], [1, 0]
    seen = [4 if piece in (5, 6, 7) else 0 for piece in range(source_size)]
    return Shortlist.of(best, counts, seen, [10, 11])


def test_segment_may_use_aligned_and_frequent_tokens() -> None:
    pair = TokenizerPair(tokenizer_of("abcdefgh"), tokenizer_of("ijklmnop"))
    eos, table = pair.target.eos_id, table_of(pair)

    assert table.allowed([5, 6, 5], [], pair) == sorted([eos, 10, 11, 6, 7, 8])
    assert table.allowed([6], [], pair) == sorted([eos, 10, 11, 8])
    assert table.allowed([7], [], pair) == sorted([eos, 10, 11])


def test_names_keep_their_pieces_where_the_vocabulary_is_one(joint: TokenizerPair) -> None:
    allowed = table_of(joint).allowed([6, 7], [], joint)

    assert allowed == sorted([joint.target.eos_id, 10, 11, 8, 6, 7])


def test_prefix_is_always_among_the_pieces(joint: TokenizerPair) -> None:
    table = table_of(joint)

    assert set(table.allowed([6], [9, 1], joint) or ()) - set(
        table.allowed([6], [], joint) or ()
    ) == {9, 1}


def test_segment_with_a_piece_never_seen_may_have_all(joint: TokenizerPair) -> None:
    assert table_of(joint).allowed([6, 9], [], joint) is None


def test_table_is_read_as_it_was_written(joint: TokenizerPair, tmp_path: Path) -> None:
    table = table_of(joint)
    save_shortlist(tmp_path / "table", table, joint)

    again = load_shortlist(tmp_path / "table", joint)

    assert again == table
    assert again.width == 2


def test_missing_shortlist_is_an_error(joint: TokenizerPair, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="table: there is no such shortlist") as caught:
        load_shortlist(tmp_path / "table", joint)

    assert "tfm shortlist" in str(caught.value.hint)
    with pytest.raises(ModelError, match="is not a regular file"):
        load_shortlist(tmp_path, joint)


def test_table_of_another_tokenizer_is_refused(joint: TokenizerPair, tmp_path: Path) -> None:
    other = TokenizerPair.joint(tokenizer_of("ijklmnop"))
    save_shortlist(tmp_path / "table", table_of(other), other)

    with pytest.raises(ModelError, match="was made with another tokenizer: found SHA-256"):
        load_shortlist(tmp_path / "table", joint)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 100])
def test_torn_table_is_refused(joint: TokenizerPair, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table").write_bytes(content)

    with pytest.raises(ModelError, match="is damaged or not a shortlist"):
        load_shortlist(tmp_path / "table", joint)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def apply(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return apply


def with_value(value: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([1]), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("best", with_value(1000)), "`best` has ids beyond the .* of the vocabulary"),
        (changed("best", with_value(-2)), "`best` has ids beyond"),
        (changed("frequent", with_value(-1)), "`frequent` has ids beyond"),
        (changed("best", lambda t: t[:-1]), r"`best` has shape \(.*, 2\) and `frequent` \(2,\)"),
        (changed("frequent", lambda t: t[None]), r"and `frequent` \(1, 2\)"),
        (changed("seen", lambda t: t[:-1]), "and `seen`"),
        (changed("counts", lambda t: t[:, :1]), "`counts` has shape"),
        (changed("counts", lambda t: t.float()), "`counts` has type F32, expected I32"),
        (
            lambda tensors: tensors.pop("seen"),
            "is damaged or not a shortlist: has best, counts, freq",
        ),
    ],
)
def test_tensors_that_are_no_table_are_refused(
    joint: TokenizerPair, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    table = table_of(joint)
    tensors = {
        name: torch.tensor(getattr(table, name), dtype=torch.int32)
        for name in ("best", "counts", "seen", "frequent")
    }
    for name in ("best", "counts"):
        tensors[name] = tensors[name].view(-1, table.width)
    change(tensors)
    metadata = {"format_version": 1, "tokenizer_sha256": joint.sha256}
    save_file(tensors, tmp_path / "table", {"tfm": json.dumps(metadata)})

    with pytest.raises(ModelError, match=message):
        load_shortlist(tmp_path / "table", joint)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format_version": 2}, "has format 2, expected at most 1"),
        ({"format_version": "x"}, "`format_version` is missing or not a number"),
        ({}, "`format_version` is missing or not a number"),
        ([], "its metadata is not a JSON object"),
    ],
)
def test_table_of_another_format_is_refused(
    joint: TokenizerPair, tmp_path: Path, metadata: object, message: str
) -> None:
    save_file({"best": torch.zeros(1)}, tmp_path / "table", {"tfm": json.dumps(metadata)})

    with pytest.raises(ModelError, match=message):
        load_shortlist(tmp_path / "table", joint)
