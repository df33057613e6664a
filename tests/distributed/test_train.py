"""`torchrun -m tfm_cli train`: several processes match one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY_SHAPE, RunTfm, TinyCorpus
from tests.distributed import ranks
from tests.runs import checkpoints, metrics, write_part
from tests.tiers import representative

UPDATES = 20
PATIENCE = 120
# All that makes it hard to be equal: dropout, batches in parts, clipping, an average.
RUN = [
    *TINY_SHAPE, "--max-tokens", "64", "--set", "training.micro_batch=40", "--dropout", "0.2",
    "--attention-dropout", "0.1", "--activation-dropout", "0.1", "--word-dropout", "0.1",
    "--lr", "5e-3", "--lr-warmup", "10", "--set", "training.ema_decay=0.8", "--device", "cpu",
    "--precision", "fp32", "--cpu-threads", "1", "--disp-freq", "1", "--valid-freq", "10",
    "--save-freq", "10",
]  # fmt: skip
FSDP = ["--set", "parallel.strategy=fsdp"]


def in_double(rank: int = 0) -> None:
    """Train in double precision."""
    from tfm_cli.training import checkpoint, initialization, run

    def double(*arguments: Any) -> Any:
        return initialization.initialize_model(*arguments).double()

    # Mypy sees that it is imported there, and another signature.
    run.initialize_model = double  # type: ignore[attr-defined, assignment]
    checkpoint.TYPES["F64"] = torch.float64


@pytest.fixture(scope="module")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a corpus whose epochs have five batches: one process is left without the last."""
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=55, valid=12)


@pytest.fixture(scope="module")
def alone(text: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that two with half its batches each must equal."""
    output = tmp_path_factory.mktemp("alone") / "model"
    learn(text, output, "--update-freq", "2", world_size=1)
    return output


def command(text: list[str], output: Path, *more: str, updates: int = UPDATES) -> list[str]:
    return ["train", *text, *RUN, "-o", str(output), "--max-updates", str(updates), *more]


def learn(
    text: list[str], output: Path, *more: str, world_size: int = 2, updates: int = UPDATES
) -> str:
    """Train in double precision, and return the output of rank 0. The others are silent."""
    done = ranks.run(
        output.parent / f"streams-{output.name}", command(text, output, *more, updates=updates),
        world_size=world_size, prepare=in_double,
    )  # fmt: skip
    assert [each.code for each in done] == [0] * world_size, [each.err for each in done]
    assert [each.err for each in done[1:]] == [""] * (world_size - 1)
    return done[0].err


def facts(output: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if "second" not in name}
        for line in metrics(output)
    ]


def tensors(output: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint, and those of the model that is kept."""
    return {
        f"{file.name}/{name}": tensor
        for file in [*checkpoints(output)[-1].glob("*.safetensors"), output / "model.safetensors"]
        for name, tensor in load_file(file).items()
    }


def assert_equal_runs(actual: Path, expected: Path) -> None:
    """Losses, scores and weights are the same but for the order in which numbers are added up."""
    assert [line.keys() for line in facts(actual)] == [line.keys() for line in facts(expected)]
    for mine, theirs in zip(facts(actual), facts(expected), strict=True):
        for name, value in theirs.items():
            exact = not isinstance(value, float)
            assert mine[name] == (value if exact else pytest.approx(value, rel=1e-9)), name
    own, others = tensors(actual), tensors(expected)
    assert own.keys() == others.keys()
    for name, tensor in others.items():
        # Adam divides by moments, of which the smallest have few equal digits.
        torch.testing.assert_close(own[name], tensor, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_r52_processes_with_all_weights_learn_what_one_learns(
    text: list[str], alone: Path, tmp_path: Path
) -> None:
    said = learn(text, tmp_path / "model")

    assert len(facts(alone)) == UPDATES + 2
    assert_equal_runs(tmp_path / "model", alone)
    assert " on 2 processes (ddp), cpu each; 5 batches an epoch" in said
    assert "an update has" not in said


@pytest.mark.slow
def test_r52_processes_cut_words_alike(text: list[str], tmp_path: Path) -> None:
    more = ["--subword-sampling", "both", "--set", "tokenizer.model_type=bpe"]
    learn(text, tmp_path / "one", *more, "--update-freq", "2", world_size=1, updates=10)

    learn(text, tmp_path / "model", *more, updates=10)

    assert_equal_runs(tmp_path / "model", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_with_consistency_training_match_one_process(
    strategy: str, text: list[str], tmp_path: Path
) -> None:
    more = ["--consistency", "simcut", "--token-cutoff", "0.1"]
    learn(text, tmp_path / "one", *more, "--update-freq", "2", world_size=1, updates=10)

    strategies = ["--set", f"parallel.strategy={strategy}"]
    learn(text, tmp_path / "model", *more, *strategies, updates=10)

    assert all(line["consistency"] > 0 for line in facts(tmp_path / "one") if "ppl" in line)
    assert_equal_runs(tmp_path / "model", tmp_path / "one")


@pytest.mark.slow
def test_ranks_with_sharded_weights_match_one_process(
    text: list[str], alone: Path, tmp_path: Path
) -> None:
    said = learn(text, tmp_path / "model", *FSDP)

    assert_equal_runs(tmp_path / "model", alone)
    assert " on 2 processes (fsdp), cpu each; 5 batches an epoch" in said


@pytest.mark.torture
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_with_uneven_shards_match_one_process(
    strategy: str, text: list[str], tmp_path: Path
) -> None:
    more = ["--set", "model.norm=pre", "--set", "model.positions=learned", "--set",
            "model.output_bias=true", "--set", "model.tied_embeddings=0"]  # fmt: skip
    learn(text, tmp_path / "one", *more, "--update-freq", "3", world_size=1)

    learn(text, tmp_path / "three", *more, "--set", f"parallel.strategy={strategy}", world_size=3)

    assert_equal_runs(tmp_path / "three", tmp_path / "one")


@pytest.mark.slow
def test_any_number_of_processes_resumes_the_run_of_any_other(
    text: list[str], alone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"

    one, two = ["--update-freq", "2"], ["--update-freq", "1"]

    learn(text, output, *one, world_size=1, updates=4)
    said = [
        learn(text, output, *two, updates=9),
        learn(text, output, *two, *FSDP, updates=13),
        learn(text, output, *one, world_size=1, updates=17),
        learn(text, output, *two, *FSDP),
    ]

    assert_equal_runs(output, alone)
    for before, words in zip((4, 9, 13, 17), said, strict=True):
        assert f"resuming after update {before} of `{output}`" in words
        assert "an update has" not in words


@pytest.mark.torture
def test_another_number_of_batches_is_logged(text: list[str], tmp_path: Path) -> None:
    output = tmp_path / "model"
    learn(text, output, "--update-freq", "3", world_size=1, updates=2)

    two = learn(text, output, "--update-freq", "1", updates=3)
    one = learn(text, output, world_size=1, updates=4)  # a run keeps its settings

    assert (
        "an update has 2 batches now (`--update-freq 1`, 2 processes) and had 3 before; "
        "no `--update-freq` would keep that\n"
    ) in two
    assert (
        "an update has 1 batch now (`--update-freq 1`, 1 process) and had 2 before; "
        "`--update-freq 2` would keep that\n"
    ) in one
    state = json.loads((checkpoints(output)[-1] / "state.json").read_bytes())["state"]
    assert (state["world_size"], state["batches_per_update"]) == (1, 1)


@pytest.mark.slow
@representative("strategy", ["ddp", "fsdp"])
def test_validation_finds_what_one_process_finds(
    strategy: str, tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    """With a model that has learned something, so that scores say something."""
    tuning = [
        "train", *tiny_corpus.train_arguments(), "--pretrained-model", str(tiny_model),
        "--lr", "1e-9", "--max-updates", "2", "--valid-freq", "1", "--max-tokens", "128",
        "--device", "cpu", "--precision", "fp32", "--dropout", "0", "--set", "search.max_tokens=64",
        "--set", f"parallel.strategy={strategy}",
    ]  # fmt: skip

    for world_size in (1, 2):
        frequency = ["--update-freq", str(2 // world_size), "-o", str(tmp_path / str(world_size))]
        done = ranks.run(tmp_path / "streams", [*tuning, *frequency], world_size=world_size)
        assert [each.code for each in done] == [0] * world_size, done[0].err

    one, two = (
        [line for line in facts(tmp_path / world_size) if line["event"] == "valid"]
        for world_size in "12"
    )
    assert one[0]["bleu"] > 50
    # The weights have moved by an ulp or so, hence the loss.
    assert [(line["bleu"], line["chrf"]) for line in two] == [
        (line["bleu"], line["chrf"]) for line in one
    ]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-6)


@pytest.mark.slow
def test_torchrun_trains_a_model_that_one_process_translates_with(
    tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    flags = [
        "train", *tiny_corpus.train_arguments(), "-o", str(tmp_path / "model"), *TINY_SHAPE,
        "--max-updates", "150", "--max-tokens", "256", "--lr", "5e-3", "--lr-warmup", "50",
        "--valid-freq", "50", "--dropout", "0", "--device", "cpu",
        "--set", "training.ema_decay=0.9",
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", "-m", "tfm_cli", *flags],
        env=os.environ, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for once in (
        "tokenizer: learned",
        "update    100  ",
        "valid      50  ",
        "stopped after update",
    ):
        assert done.stderr.count(once) == 1
    translated = run_tfm(["translate", "-m", str(tmp_path / "model")], "one two three\n")
    assert translated.out == "eins zwei drei\n"
