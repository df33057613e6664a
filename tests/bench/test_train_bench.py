import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.bench import train, train_sides
from tests.bench.train_loop import RefusedError
from tests.bench.train_runs import measured
from tests.bench.train_sides import Learning, measuring
from tests.bench.train_table import HEADING, TRICK_HEADING, Side, ratios, rows, trick_row
from tests.bench.train_tricks import TRICKS, left_out
from tests.bench.train_works import (
    TRICK_WAYS,
    WORKS,
    Shape,
)
from tfm_cli.model.transformer import Transformer

pytestmark = pytest.mark.slow

SHAPE = Shape(width=16, layers=2, heads=2, feed_forward_width=24, vocab_size=60, updates=2)


def job(side: str, **more: Any) -> dict[str, Any]:
    return {
        "side": side, "without": "", "shape": dataclasses.asdict(SHAPE), "dropout": 0.0,
        "precision": "fp32", "slow_bf16": False, "batching": "same", "pairs": 200,
        "max_tokens": 4096, "updates": 2, "threads": 1, **more,
    }  # fmt: skip


def learned(one: dict[str, Any], rounds: int = 1) -> Side:
    """What a side tells of itself, as its process would."""
    side = Side(one["side"])
    measured = measuring(one)
    side.take(measured.begin())
    for _ in range(rounds):
        side.take(measured.round())
    side.take(measured.end())
    return side


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_command_lists_its_works_and_refuses_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--list"])
    train.main()
    assert capsys.readouterr().out.split() == [work.name for work in WORKS]

    monkeypatch.setattr(sys, "argv", ["train.py", "--tricks", "magic"])
    with pytest.raises(SystemExit):
        train.main()
    assert "no trick is called `magic`" in capsys.readouterr().err


@torch.no_grad()
def copy_weights(ours: Transformer, theirs: Any) -> None:
    """Give torch.nn.Transformer the weights of tfm's."""

    def give(target: Any, source: Any) -> None:
        target.weight.copy_(source.weight)
        if getattr(source, "bias", None) is not None:
            target.bias.copy_(source.bias)

    def attention(target: nn.MultiheadAttention, source: Any) -> None:
        target.in_proj_weight.copy_(source.projection.weight)
        target.in_proj_bias.copy_(source.projection.bias)
        give(target.out_proj, source.output)

    give(theirs.embedding, ours.target_embedding)
    for side in ("encoder", "decoder"):
        for theirs_layer, layer in zip(
            getattr(theirs.transformer, side).layers, getattr(ours, f"{side}_layers"), strict=True
        ):
            parts = ["self_attention", *(["cross_attention"] * (side == "decoder"))]
            for number, name in enumerate([*parts, "feed_forward"], start=1):
                give(getattr(theirs_layer, f"norm{number}"), getattr(layer, f"{name}_norm").norm)
            attention(theirs_layer.self_attn, layer.self_attention)
            if side == "decoder":
                attention(theirs_layer.multihead_attn, layer.cross_attention)
            give(theirs_layer.linear1, layer.feed_forward.inner)
            give(theirs_layer.linear2, layer.feed_forward.outer)


def test_tfm_and_a_peer_with_the_same_weights_learn_the_same() -> None:
    ours, theirs = Learning(job("tfm")), Learning(job("torch"))
    copy_weights(ours.side.model, theirs.side.peer.model)  # type: ignore[attr-defined] # of these

    before = [learning.begin()["first_loss"] for learning in (ours, theirs)]
    for learning in (ours, theirs) * 4:
        learning.round()
    after = [learning.end()["last_loss"] for learning in (ours, theirs)]

    # fp32, other orders of summation.
    assert before[0] == pytest.approx(before[1], rel=1e-5)
    assert after[0] == pytest.approx(after[1], rel=2e-5)
    assert after[0] < before[0] - 0.01


@pytest.mark.parametrize("peer", ["torch", "hf"])
def test_losses_of_same_batches_agree_in_kind(peer: str) -> None:
    if peer == "hf":
        pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
    sides = [learned(job(name, dropout=0.1), rounds=2) for name in ("tfm", peer)]

    for side in sides:
        assert math.isfinite(side.last_loss)
        assert side.last_loss < side.first_loss
        assert len(side.seconds) == 2
        assert min(side.peak_mib, side.start_mib, side.pieces, side.operations) > 0
    assert sides[0].first_loss == pytest.approx(sides[1].first_loss, rel=0.1)
    assert sides[0].pieces == sides[1].pieces
    assert sides[0].operations == sides[1].operations
    assert sides[0].last_loss == pytest.approx(sides[1].last_loss, rel=0.1)


@pytest.fixture(scope="module")
def all_tricks() -> Side:
    return learned(job("tfm"))


@pytest.mark.parametrize("name", TRICK_WAYS)
def test_slow_way_is_taken_inside_and_gives_the_same_weights(name: str, all_tricks: Side) -> None:
    fast = [getattr(place, attribute) for place, attribute, _ in TRICKS[name]]
    with left_out(name):
        for place, attribute, slow in TRICKS[name]:
            assert getattr(place, attribute) is slow
    assert [getattr(place, attribute) for place, attribute, _ in TRICKS[name]] == fast

    without = learned(job("tfm", without=name))

    if name == "sorted-plan":
        assert without.plan_padding > all_tricks.plan_padding + 0.2
    else:
        # fp32, other orders of summation; dropout is off.
        assert without.last_loss == pytest.approx(all_tricks.last_loss, rel=1e-4)


def test_every_trick_has_its_slow_way_in_words() -> None:
    assert TRICKS.keys() == TRICK_WAYS.keys()


def test_peer_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joeynmt", None)

    with pytest.raises(RefusedError, match=r"^joeynmt is not installed$"):
        measuring(job("joeynmt"))


@pytest.mark.parametrize("side", ["tfm", "gemm"])
def test_slow_bf16_is_refused_unless_asked_for(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_sides, "resolve_precision", lambda *_: torch.float32)
    monkeypatch.setattr(train_sides, "GEMM_SECONDS", 0.0)
    monkeypatch.setattr(train_sides, "GEMM_WIDTH", 8)

    with pytest.raises(RefusedError, match="no bf16 on this processor"):
        measuring(job(side, precision="bf16"))
    found = learned(job(side, precision="bf16", slow_bf16=True))

    assert found.operations > 0
    assert found.seconds[0] > 0


def side(name: str, *seconds: float, **facts: Any) -> Side:
    defaults = {"pieces": 1000, "operations": 8000, "peak_mib": 100.0, "padding": 0.05}
    return Side(name, seconds=list(seconds), **{**defaults, **facts})


def test_rows_have_ratios_by_round_and_name_the_best_peer() -> None:
    gemm = side("gemm", 1.0, 1.0, operations=16000)
    tfm = side("tfm", 1.0, 2.0, first_loss=5.0, last_loss=4.0)
    slow = side("hf", 4.0, 4.0, peak_mib=80.0)
    fast = side("torch", 2.0, 2.0, peak_mib=200.0)
    absent = Side("joeynmt", refused="joeynmt is not installed")

    lines = [cells(line) for line in rows("w", tfm, [slow, fast, absent], gemm).split("\n")]

    assert lines[0] == ["w", "tfm", "750", "", "", "100", "5.0%", "5.000 → 4.000", "38%"]
    assert lines[1][2:6] == ["250", "4.00 2.00", "**3.00**", "80"]
    assert lines[3][:4] == ["w", "joeynmt", "–", "joeynmt is not installed"]
    assert lines[4][:6] == ["w", "fastest: torch", "", "2.00 1.00", "**1.50**", "1.25 × hf"]
    assert {len(line) for line in lines} == {len(cells(part)) for part in HEADING.split("\n")}


def test_trick_has_both_ways_in_a_row() -> None:
    line = trick_row("w", "t", "the slow way", side("tfm", 1.0), side("tfm", 2.0, peak_mib=300.0))

    assert cells(line) == ["w", "t", "the slow way", "1000 / 500", "2.00", "**2.00**", "100 / 300"]
    refused = cells(trick_row("w", "t", "s", Side("tfm", refused="no bf16"), side("tfm", 1.0)))
    assert refused[2] == "no bf16"
    assert len(refused) == len(cells(TRICK_HEADING.split("\n")[0]))


def test_rounds_that_have_no_pair_are_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 1.0], [1.0])


def test_command_measures_a_work_and_writes_it_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "bind", lambda _: None)  # would hold for the tests after it
    command = ["train.py", "--only", "tiny-fp32-same", "--rounds", "1", "--updates", "1"]
    command += ["--threads", "1", "--peers", "torch", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", command)

    train.main()

    lines = capsys.readouterr().out.strip().split("\n")
    assert [cells(line)[1] for line in lines[-3:]] == ["tfm", "torch", "fastest: torch"]
    sides = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["works"][0]["sides"]
    assert [one["name"] for one in sides] == ["tfm", "torch", "gemm"]
    assert sides[0]["pieces"] == sides[1]["pieces"]


def test_side_that_fails_tells_why_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = {"nobody": job("nobody", batching="own"), "torch": job("torch")}

    sides = measured(jobs, rounds=1)

    assert sides["nobody"].refused == "failed"
    assert "the side `nobody` failed, exit code 1:\nTraceback" in capfd.readouterr().err
    assert len(sides["torch"].seconds) == 1
