import json
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tfm_cli.config.settings import TrainingConfig
from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.training import checkpoint
from tfm_cli.training.optimizer import MovingAverage, make_optimizer
from tfm_cli.training.state import TrainState

TEXT = {"training text": "abc", "validation text": "def"}
FILES = (
    "average.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors",
    "state.json",
)  # fmt: skip


class Trainer:
    """A model that learns something, with all that belongs to it."""

    def __init__(self, width: int = 4) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 1))
        self.optimizer = make_optimizer(self.model, TrainingConfig(weight_decay=0.1))
        self.average = MovingAverage(self.model, 0.9)
        self.state = TrainState()

    def learn(self, updates: int) -> None:
        for _ in range(updates):
            self.state.update += 1
            inputs = torch.linspace(-1, self.state.update, 6).view(2, 3)
            self.model(inputs).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.average.include(self.state.update)

    def save(
        self, directory: Path, *, max_checkpoints: int = 2, best: int = 0, metric: str = "bleu"
    ) -> Path:
        return checkpoint.save(
            directory,
            model=self.model,
            average=self.average,
            optimizer=self.optimizer,
            state=self.state,
            text_sha256=TEXT,
            retention=checkpoint.Retention(max_checkpoints, best, (metric, "chrf")),
        )

    def restore(self, found: checkpoint.Checkpoint) -> None:
        checkpoint.restore(found, self.model, self.average, self.optimizer)
        self.state = found.state

    def tensors(self) -> dict[str, Tensor]:
        moments = checkpoint.optimizer_tensors(self.model, self.optimizer)
        averages = {f"average/{name}": tensor for name, tensor in self.average.weights.items()}
        tables = {**moments, **averages, **dict(self.model.named_parameters())}
        return {name: tensor.detach().clone() for name, tensor in tables.items()}


def names(directory: Path) -> list[str]:
    return [path.name for path in checkpoint.checkpoint_paths(directory)]


def newest(directory: Path) -> checkpoint.Checkpoint:
    found = checkpoint.newest(directory)
    assert found is not None
    return found


def test_restored_run_continues_to_the_bit(tmp_path: Path) -> None:
    unbroken, first, second = Trainer(), Trainer(), Trainer()
    unbroken.learn(7)
    first.learn(4)
    first.save(tmp_path)

    second.restore(newest(tmp_path))
    second.learn(3)

    expected, actual = unbroken.tensors(), second.tensors()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert second.state == unbroken.state


def test_restored_run_leaves_the_checkpoint_unchanged(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.learn(1)
    path = trainer.save(tmp_path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    trainer.restore(newest(tmp_path))
    trainer.learn(2)

    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert sorted(before) == list(FILES)


def test_text_is_remembered_by_its_hashes(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.learn(1)
    trainer.save(tmp_path)

    assert newest(tmp_path).text_sha256 == TEXT


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None


def test_names_are_compared_as_numbers(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.learn(1)
    for update in (99_999_998, 99_999_999, 100_000_000):
        trainer.state.update = update
        trainer.save(tmp_path)

    assert names(tmp_path) == ["update-99999999", "update-100000000"]
    assert newest(tmp_path).state.update == 100_000_000


@pytest.mark.parametrize("max_checkpoints", [2, 3])
def test_only_the_newest_are_kept(max_checkpoints: int, tmp_path: Path) -> None:
    trainer = Trainer()
    (tmp_path / "notes").mkdir()

    for _ in range(5):
        trainer.learn(3)
        trainer.save(tmp_path, max_checkpoints=max_checkpoints)

    kept = ["update-00000006", "update-00000009", "update-00000012", "update-00000015"]
    assert names(tmp_path) == kept[-max_checkpoints:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", *kept[-max_checkpoints:]]


@pytest.mark.parametrize("metric", ["bleu", "loss"])
@pytest.mark.parametrize("seed", range(3))
def test_best_are_kept_beside_the_newest(seed: int, metric: str, tmp_path: Path) -> None:
    scores = random.Random(seed)
    trainer, values = Trainer(), {}
    for number in range(12):
        trainer.learn(1)
        update = trainer.state.update
        if number % 3 != 1:  # the others are saved without a validation
            values[update] = [float(scores.randrange(4)), float(scores.randrange(3))]
            trainer.state.scored_update, trainer.state.last_scores = update, values[update]
        trainer.save(tmp_path, best=3, metric=metric)

        sign = 1 if metric == "loss" else -1
        best = sorted(values, key=lambda u: (sign * values[u][0], -values[u][1], u))[:3]
        kept = {*best, update, update - 1} - {0}
        assert names(tmp_path) == [f"update-{each:08d}" for each in sorted(kept)]
        ranked = checkpoint.best_checkpoints(
            checkpoint.checkpoint_paths(tmp_path), (metric, "chrf")
        )
        assert [checkpoint.update_of(path) for path in ranked][: len(best)] == best


def test_checkpoint_that_was_passed_over_makes_way_for_the_next(tmp_path: Path) -> None:
    trainer = Trainer()
    for _ in range(2):
        trainer.learn(4)
        trainer.save(tmp_path)
    (tmp_path / "update-00000008" / "manifest.json").unlink()
    trainer.restore(newest(tmp_path))

    trainer.learn(1)
    trainer.save(tmp_path)

    assert names(tmp_path) == ["update-00000004", "update-00000005"]


def test_copy_by_another_name_is_neither_gone_on_from_nor_removed(tmp_path: Path) -> None:
    trainer = Trainer()
    for _ in range(2):
        trainer.learn(1)
        trainer.save(tmp_path)
    copies = [tmp_path / "update-00000001-kept", tmp_path / "update-good"]
    for copy in copies:
        shutil.copytree(tmp_path / "update-00000001", copy)

    result = newest(tmp_path)
    for _ in range(2):
        trainer.learn(1)
        trainer.save(tmp_path)

    assert result.state.update == 2
    assert names(tmp_path) == ["update-00000003", "update-00000004"]
    assert all((copy / "manifest.json").exists() for copy in copies)


def test_no_checkpoint_but_by_another_name_is_an_error(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.learn(1)
    trainer.save(tmp_path).rename(tmp_path / "update-good")

    with pytest.raises(ModelError, match="`update-good` is not the name of a checkpoint"):
        checkpoint.newest(tmp_path)


def test_saving_again_replaces_the_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.learn(2)
    trainer.save(tmp_path)
    trainer.state.stalled = 5

    trainer.save(tmp_path)

    assert names(tmp_path) == ["update-00000002"]
    assert newest(tmp_path).state.stalled == 5


def _cut(size: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: max(size + path.stat().st_size, 0)])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x08
    path.write_bytes(content)


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut by a byte": _cut(-3),  # a manifest's last two are of no meaning
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "with a flipped byte": _flip,
    "removed": lambda path: path.unlink(),
    "a directory": _make_directory,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_torn_checkpoint_is_passed_over_with_a_warning(
    name: str, damage: str, tmp_path: Path, log_messages: list[str]
) -> None:
    trainer = Trainer()
    trainer.learn(2)
    good = trainer.save(tmp_path)
    trainer.learn(2)
    torn = trainer.save(tmp_path)

    DAMAGES[damage](torn / name)

    assert newest(tmp_path).path == good
    (line,) = log_messages
    assert line.startswith(str(torn))
    assert line.endswith("; skipping this checkpoint")


def test_only_torn_checkpoints_are_an_error(tmp_path: Path, log_messages: list[str]) -> None:
    trainer = Trainer()
    for _ in range(2):
        trainer.learn(1)
        (trainer.save(tmp_path) / "state.json").write_text("{}", encoding="utf-8")

    with pytest.raises(ModelError, match="has 2 checkpoints, of which none is intact") as caught:
        checkpoint.newest(tmp_path)

    assert caught.value.hint == "start again with `--overwrite`"
    assert len(log_messages) == 2


@pytest.mark.parametrize(
    "manifest", ["[]", "5", "null", "{}", '{"format_version": 1, "sha256": null}', "[" * 100_000]
)
def test_manifest_of_any_content_is_no_crash(manifest: str, tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.learn(1)
    path = trainer.save(tmp_path)
    (path / "manifest.json").write_text(manifest, encoding="utf-8")

    with pytest.raises(ModelError, match="is damaged or not a checkpoint"):
        checkpoint.read(path)


def test_checkpoint_of_a_newer_format_is_not_gone_back_behind(tmp_path: Path) -> None:
    trainer = Trainer()
    for _ in range(2):
        trainer.learn(1)
        path = trainer.save(tmp_path)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["format_version"] = 99
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    with pytest.raises(ModelError, match="has format 99, expected at most 1") as caught:
        checkpoint.newest(tmp_path)

    assert caught.value.hint == "install a newer tfm"


def test_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.learn(1)
    trainer.save(tmp_path)

    with pytest.raises(ModelError, match="its tensors are not those of this model"):
        Trainer(width=5).restore(newest(tmp_path))


@pytest.fixture
def _full_disk() -> Iterator[None]:
    """No file can have more than some hundred bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoint_that_cannot_be_written_leaves_those_before(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trainer = Trainer(width=9)
    trainer.learn(1)
    good = trainer.save(tmp_path)
    trainer.learn(1)

    request.getfixturevalue("_full_disk")
    with pytest.raises(
        ResourceError, match=r"update-00000002: cannot be written: .*File too large"
    ):
        trainer.save(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [good.name]
    assert newest(tmp_path).path == good


def test_old_checkpoint_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_messages: list[str]
) -> None:
    def fail(path: Path, *, is_ours: object) -> None:
        raise PermissionError(13, "Permission denied")

    trainer = Trainer()
    trainer.learn(1)
    old = trainer.save(tmp_path)
    monkeypatch.setattr(checkpoint, "remove_directory", fail)

    trainer.learn(1)
    path = trainer.save(tmp_path, max_checkpoints=1)

    assert newest(tmp_path).path == path
    assert log_messages == [f"{old}: cannot be removed: Permission denied"]
