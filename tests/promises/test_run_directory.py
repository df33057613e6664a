"""A run's directory is one run's: no other run, setting or text gets in by mistake."""

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tests.promises import forked
from tests.promises.small_run import SmallRun, unbroken_run
from tests.runs import left_behind
from tfm_cli.config import SECTIONS, RunConfig
from tfm_cli.configfile import changed_settings
from tfm_cli.durable import watched
from tfm_cli.failpoint import VARIABLE
from tfm_cli.training.run_lock import LOCK_FILE

# Each setting is in one of these classes, and a new one has to be put into one by hand.
# What may be another when a run goes on: it changes when something is done, or where, or for how
# long, and what is the same on the way is the same to the bit.
MAY_CHANGE = {
    "data": {"source", "target", "valid_source", "valid_target", "pairs", "pairs_format", "cache",
             "workers"},
    "tokenizer": set(),
    "model": set(),
    "training": {"max_updates", "max_epochs", "max_time", "micro_batch", "update_freq", "device",
                 "compile", "activation_checkpointing", "cpu_threads", "disp_freq", "save_freq",
                 "save_retries", "keep_checkpoints", "deterministic", "bad_updates",
                 "max_bad_updates"},
    "validation": {"early_stopping"},
    "parallel": {"strategy", "timeout"},
    "search": set(),
}  # fmt: skip
# What decides on the weights: another value is another run.
DECIDES = {
    "data": {"weights", "max_length", "max_ratio", "drop_identical", "drop_duplicates",
             "drop_bad_characters", "bad_utf8"},
    "tokenizer": {"model", "vocab_size", "model_type", "character_coverage", "input_sentence_size",
                  "byte_fallback", "joint", "normalization_rule_name"},
    "model": {"encoder_layers", "decoder_layers", "width", "heads", "feed_forward_width", "dropout",
              "norm", "positions", "max_positions", "activation", "tied_embeddings",
              "scale_embeddings", "output_bias"},
    "training": {"pretrained_model", "max_tokens", "learn_rate", "lr_warmup", "label_smoothing",
                 "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "clip_norm",
                 "ema_decay", "seed", "precision"},
    "validation": {"freq", "metrics", "beam_size"},
    "parallel": set(),
    "search": {"beam_size", "length_penalty", "length_norm", "early_stopping", "renormalize",
               "n_best", "no_repeat_ngram_size", "repetition_penalty", "max_length",
               "max_length_factor", "max_tokens", "buffer_size", "top_k", "top_p", "temperature",
               "seed"},
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run that never stopped."""
    return unbroken_run(tiny_corpus, tmp_path_factory.mktemp("small"))


def fields_of(section: str) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(getattr(RunConfig(), section))}


@pytest.mark.parametrize("section", SECTIONS)
def test_r07_each_setting_has_a_class(section: str) -> None:
    fields = fields_of(section)

    may_change = {name for name, field in fields.items() if field.metadata["may_change"]}

    assert MAY_CHANGE[section].isdisjoint(DECIDES[section])
    assert MAY_CHANGE[section] | DECIDES[section] == set(fields)
    assert may_change == MAY_CHANGE[section]


@pytest.mark.parametrize("section", SECTIONS)
def test_r07_changed_setting_is_refused_by_name(section: str) -> None:
    before = RunConfig()
    for name, field in fields_of(section).items():
        was = getattr(getattr(before, section), name)
        now = other_value(was, field)
        table = dataclasses.replace(getattr(before, section), **{name: now})

        changes = changed_settings(before, dataclasses.replace(before, **{section: table}))

        told = [change for change in changes if change.startswith(f"{section}.{name}: ")]
        assert bool(told) == (name in DECIDES[section]), name
        assert len(changes) == len(told)


def other_value(was: Any, field: dataclasses.Field[Any]) -> Any:
    choices = field.metadata.get("choices") or ()
    if isinstance(was, tuple):
        return (*was, "other") if not was or isinstance(was[0], str) else (*was, 2.0)
    if isinstance(was, bool):
        return not was
    if choices:
        return next(choice for choice in choices if choice != was)
    return f"{was}other" if isinstance(was, str) else was + 1


def test_r07_changed_settings_are_listed(small: SmallRun, run_tfm: RunTfm, tmp_path: Path) -> None:
    before = left_behind(small.output)

    result = run_tfm([*small.command(small.output), "--lr", "1e-3", "--seed", "5"])

    assert result.code == 2
    assert "holds a run with other settings; 2 changes" in result.err
    assert "training.learn_rate: 0.005 → 0.001" in result.err
    assert "training.seed: 1 → 5" in result.err
    assert left_behind(small.output) == before


@pytest.mark.slow
def test_r08_of_four_runs_in_one_directory_one_trains(small: SmallRun, tmp_path: Path) -> None:
    output = tmp_path / "model"
    # The first one to come waits a second once it has the lock.
    slow = {VARIABLE: "durable:6=sleep"}
    words = [tmp_path / f"words{number}" for number in range(4)]

    began = time.monotonic()
    pids = [forked.start(place, small.command(output), slow) for place in words]
    results = [forked.ended(pid, place) for pid, place in zip(pids, words, strict=True)]

    assert time.monotonic() - began < 60
    (winner,) = (number for number, result in enumerate(results) if result.code == 0)
    for number, result in enumerate(results):
        if number != winner:
            assert result.code == 5, result.err
            assert f"error: {output}: process {pids[winner]} on " in result.err
            assert " trains into it since 20" in result.err
    assert left_behind(output) == small.left


def test_r08_lock_of_a_killed_run_does_not_block(small: SmallRun, tmp_path: Path) -> None:
    output, words = tmp_path / "model", tmp_path / "words"
    pid = forked.start(words, small.command(output), {VARIABLE: "durable:60=stop"})
    forked.wait_for(lambda: "update      2" in (words / "err").read_text())

    refused = forked.run(tmp_path / "other", small.command(output))
    os.kill(pid, signal.SIGKILL)
    forked.ended(pid, words)

    assert refused.code == 5
    assert f"process {pid} on " in refused.err
    assert (output / LOCK_FILE).exists()
    result = forked.run(words, small.command(output))
    assert result.code == 0, result.err
    assert left_behind(output) == small.left


def test_r13_changed_text_is_refused_and_touched_text_is_not(
    small: SmallRun, tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    name, source = Path(small.text[1]).name, Path(small.text[1])
    own = tmp_path / name
    own.write_bytes(source.read_bytes())
    command = small.command(output, "-s", str(own))
    command = [each for each in command if each != str(source)]
    command.remove("-s")
    assert run_tfm([*command, "--max-updates", "2"]).code == 0

    lines = source.read_bytes().split(b"\n")
    own.write_bytes(b"\n".join([lines[1], lines[0], *lines[2:]]))  # as long, but another text
    changed = run_tfm(command)
    own.write_bytes(source.read_bytes())
    os.utime(own, (1, 1))
    touched = run_tfm(command)

    assert changed.code == 2
    assert "training text is not the one this run began with" in changed.err
    assert touched.code == 0, touched.err
    assert left_behind(output)["hashes"] == small.left["hashes"]


@pytest.mark.parametrize("links", [False, True])
def test_tokenizer_in_the_directory_itself_is_never_gone(
    links: bool, small: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    """It was put there by hand, and the run was told to use it."""
    output = tmp_path / "model"
    output.mkdir()
    content = (small.output / "tokenizer.model").read_bytes()
    place = tmp_path / "elsewhere" if links else output / "tokenizer.model"
    place.write_bytes(content)
    if links:
        (output / "tokenizer.model").symlink_to(place)
    use = ["--set", f"tokenizer.model={output}/tokenizer.model"]
    command = small.command(output, *use)
    there: list[bool] = []

    with watched(lambda _: there.append(place.read_bytes() == content)):
        result = run_tfm([*command, "--max-updates", "1"])
        again = run_tfm([*command, "--max-updates", "2", "--overwrite"])

    assert [result.code, again.code] == [0, 0], result.err + again.err
    assert len(there) > 50
    assert all(there)
    assert "tokenizer: learned" not in result.err
