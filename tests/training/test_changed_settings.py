"""A run may be resumed with other settings, if no weights depend on them or on request."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tests.runs import SMALL_RUN, checkpoints, left_behind, metrics, write_part
from tfm_cli.model_directory.card import read_card
from tfm_cli.model_directory.config_file import load_config
from tfm_cli.training.schedule import Schedule
from tfm_cli.training.update import update as make_update

OFTEN = ["--valid-freq", "3", "--save-freq", "3", "--disp-freq", "1"]


@pytest.fixture(scope="module")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=55, valid=2)


@pytest.fixture
def begun(text: list[str], tmp_path: Path, run_tfm: RunTfm) -> Path:
    """A run of six updates, in the middle of its second epoch."""
    output = tmp_path / "run"
    result = run_tfm(["train", *text, *SMALL_RUN, *OFTEN, "--max-updates", "6", "-o", str(output)])
    assert result.code == 0, result.err
    return output


def go_on(output: Path, *more: str) -> list[str]:
    return ["train", "-o", str(output), "--max-updates", "12", *more]


def changed(output: Path) -> list[dict[str, Any]]:
    lines = [line for line in metrics(output, marks=True) if line["event"] == "changed"]
    return [{name: line[name] for name in ("update", "changes")} for line in lines]


def state_of(output: Path) -> dict[str, Any]:
    counters = json.loads((checkpoints(output)[-1] / "state.json").read_bytes())
    state: dict[str, Any] = counters["state"]
    return state


def test_learning_rate_changes_on_request_and_is_recorded(begun: Path, run_tfm: RunTfm) -> None:
    flags = ["--lr", "0.001", "--lr-warmup", "4", "--dropout", "0.3"]
    refused = run_tfm(go_on(begun, *flags, "--seed", "3"))
    before = left_behind(begun)

    result = run_tfm(go_on(begun, *flags, "--allow-change"))

    assert refused.code == 2
    assert refused.err.split("\n")[:-1] == [
        f"error: {begun}: holds a run with other settings; 4 changes",
        "  model.dropout: 0.2 → 0.3",
        "  training.learn_rate: 0.005 → 0.001",
        "  training.lr_warmup: 10 → 4",
        "  training.seed: 1 → 3",
        "hint: keep them as they were, add `--allow-change` to change `model.dropout`, "
        "`training.learn_rate` and `training.lr_warmup`, or use `--overwrite` or another "
        "`--output`",
    ]
    assert result.code == 0, result.err
    changes = [
        "model.dropout: 0.2 → 0.3", "training.learn_rate: 0.005 → 0.001",
        "training.lr_warmup: 10 → 4",
    ]  # fmt: skip
    assert f"changed on request: {'; '.join(changes)}" in result.err
    assert changed(begun) == [{"update": 6, "changes": changes}]
    lines = {line["update"]: line for line in metrics(begun) if line["event"] == "train"}
    for update in range(1, 13):
        peak, warmup = (0.005, 10) if update <= 6 else (0.001, 4)
        expected = Schedule(peak=peak, warmup=warmup).rate(update)
        assert lines[update]["learn_rate"] == pytest.approx(expected)
    assert [line for line in before["metrics"] if line["event"] == "train"] == [
        {name: lines[update][name] for name in lines[update] if "second" not in name}
        for update in range(1, 7)
    ]
    settings = load_config(begun).settings
    assert (settings.training.learn_rate, settings.model.dropout) == (0.001, 0.3)


def test_model_card_has_the_changes(text: list[str], tmp_path: Path, run_tfm: RunTfm) -> None:
    output = tmp_path / "run"  # without validation text, the newest weights are the model
    run = ["train", *text[:4], *SMALL_RUN, *OFTEN, "-o", str(output)]
    run_tfm([*run, "--max-updates", "3"])
    run_tfm(go_on(output, "--max-updates", "6", "--allow-change", "--lr", "0.05"))
    run_tfm(go_on(output, "--max-updates", "9", "--allow-change", "--label-smoothing", "0"))

    card = read_card(output / "README.md")

    assert card is not None
    assert card.rows["changed settings"].replace("\\", "") == (
        "training.learn_rate: 0.005 → 0.05 after update 3; "
        "training.label_smoothing: 0.1 → 0.0 after update 6"
    )


def test_other_request_than_the_allowed_ones_stays_refused(begun: Path, run_tfm: RunTfm) -> None:
    flags = ["--allow-change", "--set", "model.width=64", "--vocab-size", "90", "--lr", "1"]
    result = run_tfm(go_on(begun, *flags))

    assert result.code == 2
    assert result.err.split("\n")[1:3] == [
        "  tokenizer.vocab_size: 60 → 90",
        "  model.width: 32 → 64",
    ]
    assert changed(begun) == []


# --- other batches ------------------------------------------------------------------------------


def fail_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process end before an update, as if it were killed."""

    def watched(*arguments: Any, **named: Any) -> Any:
        if arguments[3].number == number:
            raise RuntimeError("killed")
        return make_update(*arguments, **named)

    patch.setattr("tfm_cli.training.loop.update", watched)


def test_batches_change_on_request_and_a_killed_run_resumes_to_the_same_bits(
    begun: Path, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(begun)
    killed = Path(shutil.copytree(begun, begun.parent / "killed"))
    flags = ["--max-tokens", "32", "--allow-change"]

    whole = run_tfm(go_on(begun, *flags))
    codes = []
    for update in (7, 8, 11):
        with monkeypatch.context() as inside:
            fail_at(update, inside)
            codes.append(run_tfm(go_on(killed, *(flags if update == 7 else []))).code)
    resumed = run_tfm(go_on(killed))

    assert whole.code == 0, whole.err
    assert codes == [70, 70, 70]
    assert resumed.code == 0, resumed.err
    assert (before["batch_tokens"], state_of(begun)["batch_tokens"]) == (64, 32)
    assert left_behind(killed) == left_behind(begun)
    assert changed(killed) == changed(begun) == [
        {"update": 6, "changes": ["training.max_tokens: 64 → 32"]}
    ]  # fmt: skip


def test_batches_of_a_preset_change_with_their_number(begun: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(go_on(begun, "--max-tokens", "auto", "--allow-change"))
    again = run_tfm(go_on(begun, "--update-freq", "3", "--max-updates", "13"))
    more = run_tfm(go_on(begun, "--update-freq", "3", "--max-updates", "13", "--allow-change"))

    assert (result.code, again.code, more.code) == (0, 2, 0), more.err
    assert "hint: use `--update-freq 2` as before, or `--allow-change`" in again.err
    assert [line["changes"] for line in changed(begun)] == [
        ["training.max_tokens: 64 → 0"], ["target tokens in a batch: 4096 → 6144"],
    ]  # fmt: skip


def test_position_of_an_older_checkpoint_cannot_be_converted(begun: Path, run_tfm: RunTfm) -> None:
    for path in checkpoints(begun):
        counters = json.loads((path / "state.json").read_bytes())
        del counters["state"]["batch_tokens"]
        content = json.dumps(counters).encode()
        (path / "state.json").write_bytes(content)
        manifest = json.loads((path / "manifest.json").read_bytes())
        manifest["sha256"]["state.json"] = hashlib.sha256(content).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    flags = ["--max-tokens", "32", "--allow-change"]

    refused = run_tfm(go_on(begun, *flags))
    plain = run_tfm(go_on(begun, "--max-updates", "9"))
    changed_later = run_tfm(go_on(begun, *flags))

    assert refused.code == 2
    assert "its newest checkpoint is of an older version of tfm" in refused.err
    assert (plain.code, changed_later.code) == (0, 0), changed_later.err


def test_change_that_is_refused_later_is_not_made(begun: Path, run_tfm: RunTfm) -> None:
    flags = ["--schedule", "linear", "--max-updates", "0", "--allow-change"]

    result = run_tfm(["train", "-o", str(begun), *flags])

    assert result.code == 2
    assert "no end is given" in result.err
    assert load_config(begun).settings.training.schedule == "inverse-sqrt"
    assert changed(begun) == []


# --- the record of a change -----------------------------------------------------------------------


def record(output: Path) -> list[str]:
    return [change for line in changed(output) for change in line["changes"]]


def test_change_that_is_taken_back_and_made_again_is_recorded_each_time(
    begun: Path, run_tfm: RunTfm
) -> None:
    for rate in ("0.001", "0.005", "0.001"):  # without an update between them
        result = run_tfm(go_on(begun, "--max-updates", "6", "--allow-change", "--lr", rate))
        assert result.code == 0, result.err

    there, back = (f"training.learn_rate: {way}" for way in ("0.005 → 0.001", "0.001 → 0.005"))
    assert record(begun) == [there, back, there]


@pytest.mark.parametrize("rate", ["0.005", "0.001", "0.002"])
def test_change_of_a_process_that_was_killed_before_it_saved_the_settings_is_no_change(
    rate: str, begun: Path, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as inside:
        inside.setattr("tfm_cli.training.run.save_config", fail)
        killed = run_tfm(go_on(begun, "--allow-change", "--lr", "0.001"))
    recorded = record(begun)

    result = run_tfm(go_on(begun, "--allow-change", "--lr", rate))

    assert (killed.code, result.code) == (70, 0), result.err
    assert recorded == ["training.learn_rate: 0.005 → 0.001"]
    assert load_config(begun).settings.training.learn_rate == float(rate)
    expected = [] if rate == "0.005" else [f"training.learn_rate: 0.005 → {rate}"]
    assert record(begun) == expected


# --- what changes no weight -----------------------------------------------------------------------


def test_settings_without_effect_on_the_weights_change_freely(
    begun: Path, text: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    run_tfm(["train", *text, *SMALL_RUN, *OFTEN, "--max-updates", "12", "-o", str(whole)])

    result = run_tfm(
        go_on(begun, "--valid-freq", "5", "--save-freq", "4", "--set", "search.beam_size=7",
              "--set", "training.keep_checkpoints=5")
    )  # fmt: skip

    assert result.code == 0, result.err
    one, other = left_behind(begun)["hashes"], left_behind(whole)["hashes"]
    trained = [name for name in one if name.startswith("update-00000012/")]
    assert len(trained) == 3
    assert {name: one[name] for name in trained} == {name: other[name] for name in trained}
    validated = [line["update"] for line in metrics(begun) if line["event"] == "valid"]
    assert set(validated) >= {3, 6, 10}
    assert load_config(begun).settings.search.beam_size == 7
    assert changed(begun) == []
