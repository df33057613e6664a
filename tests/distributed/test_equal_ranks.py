"""Ranks match a single process on any corpus, and notice if they do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TinyCorpus
from tests.distributed import ranks
from tests.distributed.ranks_run import command
from tests.runs import checkpoints, metrics, write_part
from tests.tiers import representative
from tfm_cli.console import counted
from tfm_cli.training.optimizer import MovingAverage


@pytest.fixture(scope="module")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=120)


def recorded(path: Path) -> ranks.Prepare:
    """Record the pairs of each update of each rank."""

    def prepare(rank: int) -> None:
        from tfm_cli.training import batches, loop

        pairs_of: dict[int, tuple[list[int], Any]] = {}  # by the identity of the batch, kept alive
        batch_of = batches.BatchSampler.batch
        update = loop.update  # type: ignore[attr-defined]  # imported there

        def batch(self: Any, pairs: Any, *text: Any) -> Any:
            made = batch_of(self, pairs, *text)
            pairs_of[id(made)] = (pairs.tolist(), made)
            return made

        def noted(model: Any, made: Any, optimizer: Any, options: Any, *rest: Any) -> Any:
            ids = [pairs_of[id(each.batch)][0] for each in made.micro_batches if each.counts]
            with (path / f"{rank}.jsonl").open("a") as stream:
                stream.write(json.dumps([options.number, ids]) + "\n")
            return update(model, made, optimizer, options, *rest)

        # That is the point.
        batches.BatchSampler.batch = batch  # type: ignore[method-assign, assignment]
        # Mypy sees that it is imported there, and another signature.
        loop.update = noted  # type: ignore[attr-defined, assignment]

    path.mkdir(exist_ok=True)
    return prepare


def ids_by_update(path: Path) -> dict[int, list[int]]:
    """The pairs of each update, over all processes, sorted."""
    found: dict[int, list[int]] = {}
    for file in path.glob("*.jsonl"):
        for line in file.read_text().split("\n")[:-1]:
            number, parts = json.loads(line)
            found.setdefault(number, []).extend(pair for part in parts for pair in part)
    return {number: sorted(ids) for number, ids in sorted(found.items())}


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in metrics(output) if line["event"] == "train"]


@pytest.mark.torture
def test_r12_any_number_of_processes_learns_from_the_same_pairs(
    text: list[str], tmp_path: Path
) -> None:
    """1, 2 and 4 processes, and 1 → 2 → 1, with dropout, parts of batches and an average."""

    def learn(name: str, world_size: int, updates: int = 20) -> None:
        more = ["--update-freq", str(4 // world_size), "--set", "training.micro_batch=40"]
        more += ["--valid-freq", "99", "--save-freq", "99"]
        done = ranks.run(
            tmp_path / "s", command(text, tmp_path / name, *more, updates=updates),
            world_size=world_size, prepare=recorded(tmp_path / f"ids-{name}"),
        )  # fmt: skip
        assert [each.code for each in done] == [0] * world_size, done

    learn("1", 1)
    learn("2", 2)
    learn("4", 4)
    learn("1-2-1", 1, updates=7)
    learn("1-2-1", 2, updates=13)
    learn("1-2-1", 1)

    expected = ids_by_update(tmp_path / "ids-1")
    assert list(expected) == list(range(1, 21))
    for name in ("2", "4", "1-2-1"):
        assert ids_by_update(tmp_path / f"ids-{name}") == expected
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


@pytest.mark.slow
@representative("batches", [1, 2, 3])
def test_r50_epoch_of_any_number_of_batches_is_shared_out(
    batches: int, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    """World − 1, world and world + 1 batches; the fewest pairs of validation, too."""
    flags = write_part(tiny_corpus, tmp_path, pairs=batches, valid=1)
    more = ["--max-tokens", "1"]  # each pair is a batch

    for world_size in (1, 2):
        done = ranks.run(
            tmp_path / "s",
            command(
                flags, tmp_path / f"{world_size}", *more, "--update-freq", str(2 // world_size)
            ),
            world_size=world_size, prepare=recorded(tmp_path / f"ids-{world_size}"),
        )  # fmt: skip
        assert [each.code for each in done] == [0] * world_size, done
        assert f"; {counted(batches, 'batch', 'batches')} an epoch" in done[0].err

    assert ids_by_update(tmp_path / "ids-2") == ids_by_update(tmp_path / "ids-1")
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


def test_r51_other_code_is_refused_before_any_text_is_read(text: list[str], tmp_path: Path) -> None:
    def older(rank: int) -> None:
        if rank == 1:
            import tfm_cli
            from tfm_cli.training import rank_checks

            tfm_cli.__version__ = "0.0.9"
            rank_checks.torch.__version__ = "2.0"  # type: ignore[attr-defined]  # imported there

    done = ranks.run(tmp_path / "s", command(text, tmp_path / "model"), prepare=older)

    assert [each.code for each in done] == [2, 2]
    stderr = done[0].err + done[1].err
    assert "  rank 1: tfm is 0.0.9, on rank 0 " in stderr
    assert f"  rank 1: PyTorch is 2.0, on rank 0 {torch.__version__}\n" in stderr
    assert "training text" not in stderr


@pytest.mark.slow
@representative(("of_average", "bit"), [(False, 1), (True, 1 << 20)])
def test_r51_rank_with_another_bit_stops_all_before_the_save(
    of_average: bool, bit: int, text: list[str], tmp_path: Path
) -> None:
    name = "encoder_layers.0.feed_forward.inner.weight"

    def flip(rank: int) -> None:
        from tfm_cli.training import loop

        update = loop.update  # type: ignore[attr-defined]  # imported there

        include = MovingAverage.include

        def flip_in(weights: dict[str, torch.Tensor], number: int) -> None:
            if rank == 1 and number == 7:
                weights[name].detach().view(torch.int32).flatten()[3] ^= bit

        def update_and_flip(model: Any, plan: Any, optimizer: Any, options: Any, *rest: Any) -> Any:
            stats = update(model, plan, optimizer, options, *rest)
            flip_in(dict(model.model.named_parameters()), options.number)
            return stats

        def include_and_flip(self: MovingAverage, update: int) -> None:
            include(self, update)
            flip_in(self.weights, update)

        if of_average:
            MovingAverage.include = include_and_flip  # type: ignore[method-assign]
        else:
            # Mypy sees that it is imported there, and another signature.
            loop.update = update_and_flip  # type: ignore[attr-defined, assignment]

    more = ["--valid-freq", "50"]
    done = ranks.run(tmp_path / "s", command(text, tmp_path / "model", *more), prepare=flip)

    assert [each.code for each in done] == [6, 6], done
    stderr = done[0].err + done[1].err
    assert "error: update 10: there are other weights than on rank 0\n  rank 1 of 2: `" in stderr
    assert f"`{name} (average)`\n" in stderr or not of_average  # no weight learned from it
    assert "update-00000005`" in stderr.partition("hint: repeat the command")[2]
    assert [path.name for path in checkpoints(tmp_path / "model")] == ["update-00000005"]
