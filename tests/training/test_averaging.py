"""`tfm average`: the mean of the weights of checkpoints."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import RunTfm, TinyCorpus, invoke
from tests.runs import SMALL_RUN, checkpoints, metrics, write_part
from tfm_cli.model_directory.card import read_card
from tfm_cli.model_directory.config_file import load_config
from tfm_cli.model_directory.weights import weights_facts

KEEP = ["--set", "training.keep_checkpoints=3", "--set", "training.keep_best=3"]


@pytest.fixture(scope="module")
def trained(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that validates every two updates and saves every three."""
    directory = tmp_path_factory.mktemp("averaging")
    text = write_part(tiny_corpus, directory, pairs=55)
    often = ["--valid-freq", "2", "--save-freq", "3", "--max-updates", "12", "--valid-metrics",
             "loss", "--lr", "2e-2", "--set", "training.ema_decay=0.5"]  # fmt: skip
    result = invoke(["train", *text, *SMALL_RUN, *often, *KEEP, "-o", str(directory / "run")])
    assert result.code == 0, result.err
    return directory / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def updates(run: Path) -> list[int]:
    return [int(path.name.removeprefix("update-")) for path in checkpoints(run)]


def mean(paths: list[Path]) -> dict[str, np.ndarray]:
    """The mean of the trained weights, by NumPy and the library of the format."""
    tables = [load_file(path / "model.safetensors") for path in paths]
    return {
        name: np.asarray(np.mean([table[name] for table in tables], axis=0, dtype=np.float64))
        for name in tables[0]
    }


def best_updates(run: Path, count: int) -> list[int]:
    losses = {line["update"]: line["loss"] for line in metrics(run) if line["event"] == "valid"}
    return sorted(sorted(losses, key=lambda update: losses[update])[:count])


def test_best_checkpoints_are_kept_beside_the_newest(run: Path) -> None:
    # Each validation saves a checkpoint, so the newest are those of updates 9, 10 and 12.
    assert updates(run) == sorted({9, 10, 12, *best_updates(run, 3)})


@pytest.mark.parametrize(("flag", "count"), [("--last", 1), ("--last", 3), ("--best", 3)])
def test_weights_are_the_mean(flag: str, count: int, run: Path, run_tfm: RunTfm) -> None:
    chosen = best_updates(run, count) if flag == "--best" else updates(run)[-count:]
    output = run.parent / "averaged"

    result = run_tfm(["average", str(run), flag, str(count), "-o", str(output)])

    assert result.code == 0, result.err
    assert result.out == ""
    names = ", ".join(map(str, chosen))
    plural = "s" if count > 1 else ""
    assert f"the mean of {count} checkpoint{plural}, after update{plural} {names}\n" in result.err
    found = load_file(output / "model.safetensors")
    expected = mean([run / "checkpoints" / f"update-{update:08d}" for update in chosen])
    assert list(found) == sorted(found)
    assert found.keys() == expected.keys()
    for name, weights in found.items():
        assert weights.dtype == np.float32
        np.testing.assert_array_equal(weights, expected[name].astype(np.float32))
    card = read_card(output / "README.md")
    assert card is not None
    assert card.rows["these weights"].endswith(f"after update{plural} {names}")
    run_card = read_card(run / "README.md")
    assert run_card is not None
    assert card.rows["pairs"] == run_card.rows["pairs"] == "55"


def test_score_is_that_of_the_model_on_the_validation_text(run: Path, run_tfm: RunTfm) -> None:
    """A run whose averages equal its weights validates what `--last 1` writes."""
    text = load_config(run).settings.data
    flags = ["-s", text.source[0], "-t", text.target[0]]
    flags += ["-vs", text.valid_source[0], "-vt", text.valid_target[0]]
    plain = run.parent / "plain"
    more = ["--set", "training.ema_decay=0", "--max-updates", "4", "--valid-freq", "4"]
    trained = run_tfm(["train", *flags, *SMALL_RUN, *more, "-o", str(plain)])

    result = run_tfm(["average", str(plain), "--last", "1", "-o", str(run.parent / "one")])

    assert trained.code == result.code == 0, result.err
    (validation,) = (line for line in metrics(plain) if line["event"] == "valid")
    facts = weights_facts(run.parent / "one")
    assert facts is not None
    assert facts.update == 4
    assert facts.scores == {name: validation[name] for name in ("bleu", "chrf", "loss")}
    signature = validation["signatures"]["BLEU"]
    assert f"BLEU signature: {signature}\n" in result.err
    card = read_card(run.parent / "one" / "README.md")
    assert card is not None
    assert card.signatures["bleu"] == signature


def test_averaged_model_translates_and_is_no_run(run: Path, run_tfm: RunTfm) -> None:
    output = run.parent / "averaged"
    assert run_tfm(["average", str(run), "--last", "2", "-o", str(output), "-q"]).err == ""

    translated = run_tfm(["translate", "-m", str(output)], "one two\n\n")
    resumed = run_tfm(["train", "-o", str(output)])

    assert translated.code == 0, translated.err
    assert translated.out.count("\n") == 2
    assert resumed.code == 2
    assert "holds a trained model, but no `checkpoints` to resume from" in resumed.err
    assert not (output / "checkpoints").exists()


@pytest.mark.parametrize("gone", [True, False])
def test_text_that_is_gone_or_another_gives_no_score(
    gone: bool, run: Path, run_tfm: RunTfm
) -> None:
    settings = load_config(run).settings.data
    moved = run.parent / "valid.en"
    flags = ["-vs", str(moved), "--max-updates", "12"]
    shutil.copy(settings.valid_source[0], moved)
    assert run_tfm(["train", "-o", str(run), *flags]).code == 0
    if gone:
        moved.unlink()
    else:
        moved.write_text(moved.read_text("utf-8").replace("one", "two"), "utf-8")

    result = run_tfm(["average", str(run), "--last", "1", "-o", str(run.parent / "averaged")])

    assert result.code == 0, result.err
    assert "warning: not scored" in result.err
    facts = weights_facts(run.parent / "averaged")
    assert facts is not None
    assert facts.scores == {}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--last", "99"], "checkpoints, expected at least 99"),
        (["--best", "99"], "checkpoints with a validation score, expected at least 99"),
        ([], "expected one of `--last` and `--best`"),
        (["--last", "1", "--best", "1"], "expected one of `--last` and `--best`"),
        (["--last", "0"], "`--last` must be at least 1, got 0"),
    ],
    ids=str,
)
def test_wrong_number_is_refused(
    flags: list[str], message: str, run: Path, run_tfm: RunTfm
) -> None:
    result = run_tfm(["average", str(run), *flags, "-o", str(run.parent / "averaged")])

    assert result.code == 2
    assert message in result.err
    assert not (run.parent / "averaged").exists()


def test_changed_weights_are_refused(run: Path, run_tfm: RunTfm) -> None:
    path = checkpoints(run)[-1] / "model.safetensors"
    weights = load_file(path)
    weights[min(weights)] = weights[min(weights)] + 1
    save_file(weights, path)

    result = run_tfm(["average", str(run), "--last", "2", "-o", str(run.parent / "averaged")])

    assert result.code == 4
    assert f"error: {path}: is not what was saved: its SHA-256 differs\n" in result.err


def test_changed_counters_are_refused(run: Path, run_tfm: RunTfm) -> None:
    path = checkpoints(run)[-1] / "state.json"
    counters = json.loads(path.read_bytes())
    counters["state"]["update"] += 1
    path.write_text(json.dumps(counters), "utf-8")

    result = run_tfm(["average", str(run), "--last", "2", "-o", str(run.parent / "averaged")])

    assert result.code == 4
    assert f"error: {path}: is not what was saved" in result.err


def test_model_is_replaced_only_with_overwrite_and_a_run_never(run: Path, run_tfm: RunTfm) -> None:
    output = run.parent / "averaged"
    command = ["average", str(run), "--last", "2", "-o"]
    run_tfm([*command, str(output)])
    before = (run / "model.safetensors").read_bytes()

    again = run_tfm([*command, str(output)])
    replaced = run_tfm([*command, str(output), "--overwrite"])
    onto_run = run_tfm([*command, str(run), "--overwrite"])

    assert (again.code, replaced.code, onto_run.code) == (2, 0, 2)
    assert "hint: use `--overwrite` to replace it, or name another `--output`" in again.err
    assert f"{run}: is not empty and holds more than a model" in onto_run.err
    assert (run / "model.safetensors").read_bytes() == before


def test_model_without_checkpoints_has_none_to_average(
    tiny_model: Path, run: Path, run_tfm: RunTfm
) -> None:
    shutil.rmtree(run / "checkpoints")

    result = run_tfm(["average", str(run), "--last", "1", "-o", str(run.parent / "averaged")])

    assert result.code == 2
    assert result.err == (
        f"error: {run}: has 0 checkpoints, expected at least 1\n"
        "hint: train with `--set training.keep_checkpoints=2`\n"
    )


def test_link_to_nothing_is_no_output(run: Path, run_tfm: RunTfm) -> None:
    output = run.parent / "averaged"
    output.symlink_to("nowhere")

    result = run_tfm(["average", str(run), "--last", "1", "-o", str(output)])

    assert result.code == 2
    assert f"error: {output}: is a symbolic link to a directory that does not exist" in result.err
    assert output.is_symlink()


def test_want_of_file_descriptors_is_no_damage(
    run: Path, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr("tfm_cli.training.averaging.SafetensorsFile", fail)
    result = run_tfm(["average", str(run), "--last", "1", "-o", str(run.parent / "averaged")])

    assert result.code == 5
    assert "cannot be opened: Too many open files\nhint: average fewer checkpoints" in result.err
