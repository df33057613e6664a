import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import RunTfm, TinyCorpus
from tests.runs import SMALL_RUN, checkpoints, left_behind, metrics, write_part
from tfm_cli.training.update import update as make_update


@pytest.fixture
def text(tiny_corpus: TinyCorpus, tmp_path: Path) -> list[str]:
    """Flags of a corpus of the test's own, for it to change."""
    directory = tmp_path / "text"
    directory.mkdir()
    return write_part(tiny_corpus, directory, pairs=20, valid=2)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "model"


def command(text: list[str], output: Path, *more: str, updates: int = 2) -> list[str]:
    flags = ["-o", str(output), "--max-updates", str(updates)]
    return ["train", *text, *SMALL_RUN, *flags, *more]


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def model_content(directory: Path) -> dict[str, bytes]:
    """All but the training text that was prepared."""
    return {k: v for k, v in content(directory).items() if not k.startswith("corpus/")}


def fail_at(number: int, error: Exception, patch: pytest.MonkeyPatch) -> None:
    def watched(*arguments: Any, **named: Any) -> Any:
        if arguments[3].number == number:
            raise error
        return make_update(*arguments, **named)

    patch.setattr("tfm_cli.training.loop.update", watched)


# --- the same and other runs --------------------------------------------------------------------


def test_same_command_gives_the_same_bytes(
    text: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        run_tfm(command(text, tmp_path / name))

    assert left_behind(tmp_path / "one") == left_behind(tmp_path / "two")


def test_other_seed_gives_other_weights(text: list[str], run_tfm: RunTfm, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        run_tfm(command(text, tmp_path / seed, "--seed", seed))

    one, two = (left_behind(tmp_path / seed)["hashes"] for seed in ("1", "2"))
    assert one["model.safetensors"] != two["model.safetensors"]
    assert one["tokenizer.model"] == two["tokenizer.model"]


def test_training_leaves_the_random_numbers_of_the_process_alone(
    text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)

    torch.manual_seed(5)
    run_tfm(command(text, output))

    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_finished_run_is_left_as_it_is(text: list[str], output: Path, run_tfm: RunTfm) -> None:
    run_tfm(command(text, output))
    before = content(output)

    result = run_tfm(command(text, output))

    assert result.code == 0
    assert "stopped after update 2: 2 updates made (--max-updates)" in result.err
    assert content(output) == before


# --- what a run may not go on with --------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.en", "train.de"], "the training text is not the one this run began with"),
        (["valid.de"], "the validation text is not the one this run began with"),
        (
            ["train.en", "train.de", "valid.en"],
            "the training text and the validation text are not those this run began with",
        ),
    ],
)
def test_changed_text_is_refused(
    names: list[str], message: str, text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    run_tfm(command(text, output))
    before = model_content(output)
    for name in names:
        path = output.parent / "text" / name
        lines = path.read_text("utf-8").split("\n")
        path.write_text("\n".join([lines[1], lines[0], *lines[2:]]), encoding="utf-8")

    result = run_tfm(command(text, output, updates=4))

    assert result.code == 2
    assert f"error: {output}: {message}\n" in result.err
    hint = f"restore the text; to train its model on this text, use `--pretrained-model {output}`"
    assert f"hint: {hint} and another `--output`; `--overwrite` starts again\n" in result.err
    assert model_content(output) == before


def test_text_may_be_moved(text: list[str], output: Path, run_tfm: RunTfm) -> None:
    run_tfm(command(text, output))
    moved = [flag.replace("/text/", "/elsewhere/") for flag in text]
    (output.parent / "text").rename(output.parent / "elsewhere")

    result = run_tfm(command(moved, output, updates=3))

    assert result.code == 0, result.err
    assert "resuming after update 2" in result.err


def test_swapped_tokenizer_is_refused(text: list[str], output: Path, run_tfm: RunTfm) -> None:
    run_tfm(command(text, output))
    run_tfm(command([*text[2:4], *text[:2]], output.parent / "other"))
    run_tfm(command(text, output.parent / "third", "--vocab-size", "20"))
    shutil.copy(output.parent / "third" / "tokenizer.model", output)

    result = run_tfm(command(text, output, updates=3))

    assert result.code == 4
    assert f"{output}/tokenizer.model: is not the tokenizer in config.json" in result.err


def test_run_without_a_whole_checkpoint_is_refused(
    text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    run_tfm(command(text, output))
    for path in checkpoints(output):
        (path / "manifest.json").unlink()

    result = run_tfm(command(text, output, updates=3))

    assert result.code == 4
    assert "has 1 checkpoint, of which none is intact" in result.err
    assert "hint: start again with `--overwrite`" in result.err


def test_batches_of_another_size_are_refused(
    text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    begun = run_tfm(command(text, output, "--max-tokens", "auto", updates=1))
    before = content(output)

    result = run_tfm(command(text, output, "--max-tokens", "auto", "--update-freq", "3"))

    assert begun.code == 0, begun.err
    assert result.code == 2
    message = f"error: {output}: its batches have 4096 target tokens, and would have 6144\n"
    assert message in result.err
    assert "hint: use `--update-freq 2` as before" in result.err
    assert content(output) == before


def test_more_batches_for_an_update_may_be_asked_for(
    text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    run_tfm(command(text, output, updates=1))

    result = run_tfm(command(text, output, "--update-freq", "3"))

    assert result.code == 0, result.err
    assert (
        "an update has 3 batches now (`--update-freq 3`, 1 process) and had 2 before" in result.err
    )


# --- beginning anew -----------------------------------------------------------------------------


def test_overwriting_starts_over_and_leaves_other_files(
    text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    run_tfm(command(text, output, updates=3))
    (output / "notes.txt").write_text("mine", encoding="utf-8")

    result = run_tfm(command(text, output, "--overwrite", "--dropout", "0.3"))
    fresh = run_tfm(command(text, output.parent / "fresh", "--dropout", "0.3"))

    assert result.code == fresh.code == 0, result.err
    assert left_behind(output) == left_behind(output.parent / "fresh")
    assert [path.name for path in checkpoints(output)] == ["update-00000002"]
    assert (output / "notes.txt").read_text("utf-8") == "mine"


def test_overwriting_with_text_that_cannot_be_used_leaves_the_old_model(
    text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    run_tfm(command(text, output))
    before = content(output)
    (output.parent / "text" / "train.de").write_text("one line\n", encoding="utf-8")

    result = run_tfm(command(text, output, "--overwrite"))

    assert result.code == 3
    assert content(output) == before


# --- when it goes wrong --------------------------------------------------------------------------


def test_run_that_diverges_names_the_last_good_checkpoint_and_keeps_the_model(
    text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    run_tfm(command(text, output, updates=2))
    before = content(output)
    settings = json.loads(before["config.json"])
    del settings["sha256"]  # as one does who changes it on purpose
    settings["settings"]["training"]["learn_rate"] = 1e10
    (output / "config.json").write_text(json.dumps(settings), encoding="utf-8")

    result = run_tfm(command(text, output, "--lr", "1e10", updates=20))

    assert result.code == 6
    assert "error: update 13: the loss is " in result.err
    assert ", after 9 like it in a row" in result.err
    assert "; the weights were not changed" in result.err
    message = f"start again; the last good checkpoint is `{output}/checkpoints/update-00000002`"
    assert message in result.err
    stop = metrics(output, marks=True)[-1]
    assert (stop["event"], stop["update"], stop["complete"]) == ("stopped", 13, False)
    assert f"\nerror: {stop['reason']}\n" in result.err
    unchanged = set(before) - {"config.json", "metrics.jsonl"}
    after = content(output)
    assert {name: after[name] for name in unchanged} == {n: before[n] for n in unchanged}


def test_run_that_diverges_at_once_has_nothing_to_go_back_to(
    text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    result = run_tfm(command(text, output, "--lr", "1e10", updates=20))

    assert result.code == 6
    assert "no checkpoint was saved" in result.err
    assert not (output / "model.safetensors").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_lack_of_memory_is_an_error_with_a_hint(
    error: Exception,
    text: list[str],
    output: Path,
    run_tfm: RunTfm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail_at(2, error, monkeypatch)

    result = run_tfm(command(text, output))

    assert result.code == 5
    assert "error: cpu: out of memory" in result.err
    assert (
        "hint: use smaller micro-batches, such as `--set training.micro_batch=1024`" in result.err
    )


def test_bug_is_not_taken_for_a_lack_of_memory(
    text: list[str], output: Path, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(1, RuntimeError("shapes do not match"), monkeypatch)

    result = run_tfm(command(text, output))

    assert result.code == 70
    assert "RuntimeError: shapes do not match" in result.err
