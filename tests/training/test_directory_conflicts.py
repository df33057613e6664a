"""A run's directory is one run's: no other run, setting or text gets in by mistake."""

import dataclasses
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.conftest import RunTfm, TinyCorpus
from tests.odd_files import KINDS, make_odd
from tests.runs import left_behind
from tests.training.small_run import SmallRun, unfinished
from tfm_cli.config.loading import changed_settings
from tfm_cli.config.settings import SECTIONS, RunConfig
from tfm_cli.files.faults import VARIABLE
from tfm_cli.files.layout import LOCK_FILE

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
                 "save_retries", "keep_checkpoints", "keep_best", "deterministic", "bad_updates",
                 "max_bad_updates"},
    "validation": {"early_stopping", "freq", "samples"},
    "parallel": {"strategy", "timeout"},
    "search": {"beam_size", "n_best", "max_tokens", "buffer_size", "top_k", "top_p",
               "temperature", "seed"},
}  # fmt: skip
# What decides on the weights: another value is another run.
DECIDES = {
    "data": {"weights", "max_length", "max_ratio", "drop_identical", "drop_duplicates",
             "drop_bad_characters", "bad_utf8", "tags", "subword_sampling", "subword_alpha"},
    "tokenizer": {"model", "vocab_size", "model_type", "character_coverage", "input_sentence_size",
                  "byte_fallback", "joint", "normalization_rule_name"},
    "model": {"encoder_layers", "decoder_layers", "width", "heads", "feed_forward_width",
              "decoder_heads", "decoder_feed_forward_width", "dropout", "attention_dropout",
              "activation_dropout", "word_dropout",
              "norm", "positions", "max_positions", "activation", "tied_embeddings",
              "scale_embeddings", "output_bias"},
    "training": {"pretrained_model", "max_tokens", "learn_rate", "lr_warmup", "schedule",
                 "decay_ratio", "label_smoothing",
                 "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "clip_norm",
                 "ema_decay", "seed", "precision", "consistency", "consistency_alpha",
                 "token_cutoff"},
    "validation": {"metrics", "tokenize", "beam_size"},
    "parallel": set(),
    "search": {"length_penalty", "length_norm", "early_stopping", "renormalize",
               "no_repeat_ngram_size", "repetition_penalty", "max_length", "max_length_factor"},
}  # fmt: skip
# Those that may change on request, which is recorded.
ON_REQUEST = {
    "model.dropout", "model.attention_dropout", "model.activation_dropout", "model.word_dropout",
    "training.max_tokens", "training.learn_rate", "training.lr_warmup",
    "training.schedule", "training.decay_ratio",
    "training.label_smoothing", "training.weight_decay", "training.clip_norm",
    "training.consistency", "training.consistency_alpha", "training.token_cutoff",
}  # fmt: skip


def fields_of(section: str) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(getattr(RunConfig(), section))}


@pytest.mark.parametrize("section", SECTIONS)
def test_r07_each_setting_has_a_class(section: str) -> None:
    fields = fields_of(section)

    may_change = {name for name, field in fields.items() if field.metadata["may_change"] is True}

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

        changed = [change for change in changes if change.startswith(f"{section}.{name}: ")]
        assert bool(changed) == (name in DECIDES[section]), name
        assert len(changes) == len(changed)
        left = changed_settings(
            before, dataclasses.replace(before, **{section: table}), allow_change=True
        )
        assert left == ([] if f"{section}.{name}" in ON_REQUEST else changes)


def other_value(was: Any, field: dataclasses.Field[Any]) -> Any:
    choices = field.metadata.get("choices") or ()
    if isinstance(was, tuple):
        return (*was, "other") if not was or isinstance(was[0], str) else (*was, 2.0)
    if isinstance(was, bool):
        return not was
    if choices:
        return next(choice for choice in choices if choice != was)
    return f"{was}other" if isinstance(was, str) else was + 1


def test_r07_changed_settings_are_listed(longer: SmallRun, run_tfm: RunTfm, tmp_path: Path) -> None:
    before = left_behind(longer.output)

    result = run_tfm([*longer.command(longer.output), "--lr", "1e-3", "--seed", "5"])

    assert result.code == 2
    assert "holds a run with other settings; 2 changes" in result.err
    assert "training.learn_rate: 0.005 → 0.001" in result.err
    assert "training.seed: 3 → 5" in result.err
    assert left_behind(longer.output) == before


@pytest.mark.slow
def test_r08_of_four_runs_in_one_directory_one_trains(longer: SmallRun, tmp_path: Path) -> None:
    output = tmp_path / "model"
    # The first one to come waits a second once it has the lock.
    slow = {VARIABLE: "durable:6=sleep"}
    words = [tmp_path / f"words{number}" for number in range(4)]

    began = time.monotonic()
    pids = [forked.start(place, longer.command(output), slow) for place in words]
    results = [forked.ended(pid, place) for pid, place in zip(pids, words, strict=True)]

    assert time.monotonic() - began < 60
    (winner,) = (number for number, result in enumerate(results) if result.code == 0)
    for number, result in enumerate(results):
        if number != winner:
            assert result.code == 5, result.err
            assert f"error: {output}: process {pids[winner]} on " in result.err
            assert " has been training into it since 20" in result.err
    assert left_behind(output) == longer.left


def test_r08_lock_of_a_killed_run_does_not_block(longer: SmallRun, tmp_path: Path) -> None:
    output, words = tmp_path / "model", tmp_path / "words"
    saving = next(
        number
        for number, each in enumerate(longer.operations, 1)
        if each.path.parent.name.startswith(".update-00000002.")
    )
    pid = forked.start(words, longer.command(output), {VARIABLE: f"durable:{saving}=stop"})
    forked.wait_for(lambda: "update      2" in (words / "err").read_text())

    refused = forked.run(tmp_path / "other", longer.command(output))
    os.kill(pid, signal.SIGKILL)
    forked.ended(pid, words)

    assert refused.code == 5
    assert f"process {pid} on " in refused.err
    assert (output / LOCK_FILE).exists()
    result = forked.run(words, longer.command(output))
    assert result.code == 0, result.err
    assert left_behind(output) == longer.left


def test_r13_changed_text_is_refused_and_touched_text_is_not(
    longer: SmallRun, tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    name, source = Path(longer.text[1]).name, Path(longer.text[1])
    own = tmp_path / name
    own.write_bytes(source.read_bytes())
    command = longer.command(output, "-s", str(own))
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
    assert left_behind(output)["hashes"] == longer.left["hashes"]


@pytest.mark.parametrize("links", [False, True])
def test_r09_tokenizer_in_the_directory_itself_is_never_gone(
    links: bool, longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    """It was put there by hand, and the run was told to use it."""
    output = tmp_path / "model"
    output.mkdir()
    content = (longer.output / "tokenizer.model").read_bytes()
    place = tmp_path / "elsewhere" if links else output / "tokenizer.model"
    place.write_bytes(content)
    if links:
        (output / "tokenizer.model").symlink_to(place)
    use = ["--set", f"tokenizer.model={output}/tokenizer.model"]
    before = snapshot(tmp_path)

    for more in ([], ["--overwrite"]):
        result = run_tfm([*longer.command(output, *use), *more])

        assert result.code in (2, 5)
        assert f"{output}" in result.err
        assert "tokenizer.model" in result.err
        assert snapshot(tmp_path) == before


def snapshot(root: Path) -> dict[str, tuple[str, bytes]]:
    """All that is under a folder: links by what they say, files by their content."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        content = b""
        if path.is_symlink():
            content = str(path.readlink()).encode()
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (oct(status.st_mode), content)
    return found


def project(longer: SmallRun, place: Path) -> list[str]:
    """Make a folder in which somebody works, with text and checkpoints; returns flags."""
    flags = list(longer.text)
    (place / "corpus" / "en-fr").mkdir(parents=True)
    (place / "checkpoints" / "other").mkdir(parents=True)
    (place / "checkpoints" / "other" / "best.pt").write_bytes(b"weights of theirs")
    for index, name in enumerate(flags):
        if not name.startswith("-"):
            flags[index] = str(shutil.copy(name, place / "corpus" / "en-fr"))
    return flags


def command_with(longer: SmallRun, text: list[str], output: Path, *more: str) -> list[str]:
    return dataclasses.replace(longer, text=text).command(output, *more)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_r09_folder_of_somebody_is_refused_before_any_work(
    overwrite: list[str], longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    text = project(longer, tmp_path)
    before = snapshot(tmp_path)

    result = run_tfm(command_with(longer, text, tmp_path, *overwrite))

    assert result.code == 2
    assert result.err == (
        f"error: {tmp_path}: is not empty and holds no model: `checkpoints`, `corpus`\n"
        "hint: name another `--output`\n"
    )
    assert snapshot(tmp_path) == before


def test_r09_what_is_not_proven_to_be_ours_outlives_a_run_and_its_overwriting(
    longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    assert run_tfm(longer.command(output, "--max-updates", "2")).code == 0
    text = project(longer, output)
    for name in (
        "corpus/notes.txt",
        "corpus/00/x",
        f"corpus/{'0' * 32}/their.ids",
        "checkpoints/update-notes.txt",
        "checkpoints/update-00000001-kept/manifest.json",
        "checkpoints/update-00000001/thesis.tex",
        "notes.txt",
        ".notes.7.part",
    ):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(b"theirs")
    ours = re.compile(r"\.(model|json|jsonl|safetensors)$|README|/[0-9a-f]{32}/(source|target)\.")
    kept = {k: v for k, v in snapshot(output).items() if v[1] and not ours.search(k)}
    kept |= {k: v for k, v in snapshot(output).items() if v[1] == b"theirs"}
    assert len(kept) == 13

    results = [
        run_tfm(command_with(longer, text, output)),
        run_tfm(command_with(longer, text, output, "--overwrite", "--seed", "9")),
    ]

    assert [result.code for result in results] == [0, 0], results
    assert {k: v for k, v in snapshot(output).items() if k in kept} == kept


INPUTS = {
    "source": ("-s", "checkpoints/update-00000002/state.json"),
    "pairs": ("--pairs", "metrics.jsonl"),
    "validation": ("-vs", "README.md"),
    "config": ("--config", "README.md"),
    "tokenizer": ("--tokenizer", "tokenizer.model"),
    "tokenizer's model": ("--tokenizer", ""),
    "pretrained model": ("--pretrained-model", ""),
    "data cache": ("--data-cache", "checkpoints/update-00000002"),
    "lock": ("-s", ".tfm-train.lock"),
}


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_r09_input_that_the_output_would_replace_is_refused(
    name: str, links: bool, longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    shutil.copytree(longer.output, output)
    (output / "checkpoints" / "update-00000006").rename(output / "checkpoints/update-00000002")
    flag, place = INPUTS[name]
    if name == "lock":
        (output / place).write_bytes(b"text\n")
    given = output / place
    if name == "config":
        given.write_bytes(b"")
    if links:
        given = tmp_path / "link"
        given.symlink_to(output / place)
    before = snapshot(tmp_path)

    command = ["train", "-o", str(output), "--overwrite", flag, str(given), "--max-updates", "1"]
    if flag in ("-s", "-vs"):
        command += [{"-s": "-t", "-vs": "-vt"}[flag], str(given)]
    if flag == "-vs" or name == "tokenizer":
        command += longer.text[:4]
    result = run_tfm(command)

    assert result.code == 2, result.err
    assert f"{given}" in result.err or name == "pretrained model"
    assert "which is read" in result.err or "which `--overwrite` would remove" in result.err
    assert snapshot(tmp_path) == before


PRIVATE = [".tfm-train.lock", ".tfm-run.json", "metrics.jsonl", "README.md", "config.json",
           "model.safetensors", "tokenizer.model", "shortlist.safetensors"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PRIVATE)
def test_r09_private_file_that_leads_elsewhere_is_refused_by_name(
    name: str, kind: str, longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output, victim = tmp_path / "model", tmp_path / "victim"
    shutil.copytree(longer.output, output)
    if (output / name).exists():
        (output / name).rename(victim)
    else:
        victim.write_bytes(b"theirs")
    make_odd(kind, output / name, victim)
    if kind == "hard link" and name not in (".tfm-train.lock", "metrics.jsonl"):
        return  # what is replaced, and never written to, may have other names
    before = snapshot(tmp_path)

    for more in ([], ["--overwrite"]):
        result = run_tfm(longer.command(output, "--max-updates", "9", *more))

        assert result.code == 5, result.err
        assert f"error: {output / name}: cannot be written: " in result.err
        assert snapshot(tmp_path) == before


def test_r09_what_stands_in_the_way_of_the_best_model_by_schedule_is_refused_by_name(
    longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    shutil.copytree(longer.output, output)
    place = output / "checkpoints" / "best-on-schedule"
    place.mkdir(exist_ok=True)
    (place / "thesis.tex").touch()
    before = snapshot(tmp_path)

    result = run_tfm(longer.command(output, "--max-updates", "9"))

    assert result.code == 2
    assert f"error: {place}: has an entry that tfm did not write: `thesis.tex`\n" in result.err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("added", [False, True])
def test_r09_readme_of_somebody_is_left_as_it_is(
    added: bool, longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    shutil.copytree(longer.output, output)
    card = (output / "README.md").read_bytes() if added else b""
    (output / "README.md").write_bytes(card + b"# My notes\n")

    results = [
        run_tfm(longer.command(output, "--max-updates", "9")),
        run_tfm(longer.command(output, "--overwrite", "--seed", "9")),
    ]

    assert [result.code for result in results] == [0, 0], results
    message = "README.md: not replaced, since it is not a model card of tfm"
    assert results[1].err.count(message) == 1
    assert (output / "README.md").read_bytes() == card + b"# My notes\n"


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", ["corpus", "checkpoints"])
def test_r55_folder_of_ours_that_is_a_link_is_refused_by_name(
    name: str, dangling: bool, longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    shutil.copytree(longer.output, output)
    (output / name).rename(elsewhere)
    (elsewhere / "theirs").mkdir()
    (output / name).symlink_to("nowhere" if dangling else elsewhere)
    before = snapshot(tmp_path)

    for more in ([], ["--overwrite"]):
        result = run_tfm(longer.command(output, *more))

        assert result.code == 2, result.err
        assert f"error: {output / name}: is a symbolic link, expected a directory\n" in result.err
        assert ("`--data-cache`" in result.err) == (name == "corpus")
        assert snapshot(tmp_path) == before
    if name == "corpus" and not dangling:
        cached = run_tfm(longer.command(output, "--data-cache", str(elsewhere)))
        assert cached.code == 0, cached.err
        assert (elsewhere / "theirs").is_dir()


def test_r09_link_to_an_output_directory_is_followed(
    longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    result = run_tfm(longer.command(tmp_path / "link"))

    assert result.code == 0, result.err
    assert (tmp_path / "link").is_symlink()
    assert left_behind(tmp_path / "real") == longer.left


def test_r01_run_that_was_killed_before_its_settings_were_saved_begins_again(
    longer: SmallRun, tmp_path: Path
) -> None:
    saved = next(
        number
        for number, each in enumerate(longer.operations, 1)
        if each.kind == "rename" and each.target == longer.output / "config.json"
    )
    marked = next(
        number
        for number, each in enumerate(longer.operations, 1)
        if each.kind == "rename" and each.target == longer.output / ".tfm-run.json"
    )
    before = {each.path.name for each in longer.operations[: marked - 1]}
    assert before <= {"model", ".tfm-train.lock"} | {longer.operations[marked - 1].path.name}
    for number in (1, 2, marked - 1, marked, marked + 1, saved):
        output = tmp_path / f"{number}" / "model"
        fault = {VARIABLE: f"durable:{number}=kill"}
        killed = forked.run(output.with_name("words"), longer.command(output), fault)
        assert killed.code == -signal.SIGKILL

        result = forked.run(output.with_name("words"), longer.command(output))

        assert result.code == 0, result.err
        assert left_behind(output) == longer.left
        assert not (output / ".tfm-run.json").exists()


def test_r01_run_of_0_1_that_was_killed_before_its_settings_were_saved_begins_again(
    longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    shutil.copytree(longer.output / "corpus", output / "corpus")
    shutil.copy(longer.output / "tokenizer.model", output)
    (output / "checkpoints").mkdir()
    (output / ".config.json.123.part").write_bytes(b"{")
    (output / ".tfm-train.lock").write_bytes(b'{"pid": 123, "host": "h", "since": "2026"}')

    result = run_tfm(longer.command(output))

    assert result.code == 0, result.err
    assert left_behind(output) == longer.left
    assert unfinished(output) == []
