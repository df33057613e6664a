import contextlib
import gzip
import os
import pty
import re
import subprocess
import termios
import threading
from pathlib import Path

import pytest

from tests.conftest import TFM, TINY_SHAPE, RunTfm, TinyCorpus
from tests.forked import PATIENCE
from tests.runs import SMALL_RUN, metrics, write_part
from tests.tiers import representative
from tfm_cli.config.loading import read_toml, resolve, to_mapping
from tfm_cli.config.presets import PRESETS
from tfm_cli.model_directory.config_file import load_config
from tfm_cli.model_directory.weights import weights_facts
from tfm_cli.native import library


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text(tiny_corpus: TinyCorpus, tmp_path: Path) -> list[str]:
    return write_part(tiny_corpus, tmp_path, pairs=20, valid=2)


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def on_terminal(arguments: list[str], columns: int) -> list[str]:
    """Return what a terminal of a width gets to show of a command, redrawn lines among them."""
    keyboard, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [*TFM, *arguments], stdin=terminal, stdout=terminal, stderr=terminal,
        env=environment | {"TERM": "xterm-256color", "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while chunk := os.read(keyboard, 1 << 16):
            shown += chunk
    os.close(keyboard)
    assert process.wait(timeout=PATIENCE) == 0, shown
    return re.split("[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()))


# --- what it says -------------------------------------------------------------------------------


def test_run_tells_what_it_reads_what_it_trains_and_why_it_stopped(
    text: list[str], run_tfm: RunTfm
) -> None:
    flags = ["--max-updates", "4", "--disp-freq", "2", "--valid-freq", "4"]

    result = run_tfm(["train", *text, *SMALL_RUN, *flags])

    assert result.code == 0
    assert result.out == ""
    patterns = [
        r"tokenizer: 24 tokens instead of 60, the text yields no more",
        r"tokenizer: learned a vocabulary of 24 tokens",
        r"training text: 20 pairs, \d+ \+ \d+ tokens",
        r"validation text: 2 pairs",
        r"model: 1\+1 layers, width 32, [\d,]+ parameters, \w+ on cpu; \d+ batches an epoch, "
        r"[\d.]+ % padding",
        r"update      2  epoch   2  loss +[\d.]+  ppl +[\d.]+  lr [\d.e-]+  tgt-tok/s .*",
        r"update      4  epoch .*",
        r"valid       4  epoch   \d  bleu [\d.]+  chrf [\d.]+  loss [\d.]+  ppl .*  best",
        *(rf"  {line} {name}.*" for line in (1, 2) for name in ("source", "reference", "trans")),
        r"BLEU signature: nrefs:1\|.*",
        r"chrF2 signature: nrefs:1\|.*",
        r"stopped after update 4: 4 updates made \(--max-updates\); best bleu [\d.]+ at update 4; "
        r"trained \d+s; model in `model`",
        r"",
    ]
    if library.available():  # else PyTorch validates
        packed = (
            r"validation: weights packed in \d+\.\d s, translated in \d+\.\d s, with \d+ MiB more"
        )
        patterns.insert(7, packed)
    lines = result.err.split("\n")
    assert len(lines) == len(patterns)
    for pattern, line in zip(patterns, lines, strict=True):
        assert re.fullmatch(pattern, line)


def test_model_directory_has_all_that_is_promised(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(["train", *text, *SMALL_RUN, "--max-updates", "1", "-o", "deep/er"])

    assert sorted(path.name for path in Path("deep/er").iterdir()) == [
        "README.md", "checkpoints", "config.json", "corpus", "metrics.jsonl",
        "model.safetensors", "tokenizer.model",
    ]  # fmt: skip


def test_quiet_run_says_nothing(text: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm(["train", *text, *SMALL_RUN, "--max-updates", "2", "-q"])

    assert (result.code, result.out, result.err) == (0, "", "")


def test_dropped_pairs_are_told(run_tfm: RunTfm) -> None:
    write("a.en", "one\n\none two three\none\n")
    write("a.de", "eins\nzwei\neins\neins zwei drei\n")
    limit = ["--set", "data.max_length=2", "--max-updates", "1"]

    result = run_tfm(["train", "-s", "a.en", "-t", "a.de", *SMALL_RUN, *limit])

    assert result.code == 0, result.err
    message = "training text: 1 pair, 2 + 2 tokens, 1 dropped: blank side, 2 dropped: too long\n"
    assert message in result.err
    card = Path("model/README.md").read_text("utf-8")
    assert "| pairs | 1 (left out: 1 blank side, 2 too long) |" in card


def test_metrics_are_json_lines(text: list[str], run_tfm: RunTfm) -> None:
    flags = ["--max-updates", "4", "--disp-freq", "1", "--valid-freq", "2"]

    run_tfm(["train", *text, *SMALL_RUN, *flags])

    assert [(line["event"], line["update"]) for line in metrics(Path("model"))] == [
        ("train", 1), ("train", 2), ("valid", 2), ("train", 3), ("train", 4), ("valid", 4),
    ]  # fmt: skip


def test_metrics_have_stops_and_resumes(text: list[str], run_tfm: RunTfm) -> None:
    for updates in ("2", "4", "4"):  # the last command has nothing to do
        run_tfm(["train", *text, *SMALL_RUN, "--max-updates", updates])

    lines = [line for line in metrics(Path("model"), marks=True) if line["event"] != "valid"]
    assert [(line["event"], line["update"]) for line in lines] == [
        ("stopped", 2), ("resumed", 2), ("stopped", 4),
    ]  # fmt: skip
    assert [line.get("reason") for line in lines] == [
        "2 updates made (--max-updates)", None, "4 updates made (--max-updates)",
    ]  # fmt: skip
    assert lines[0]["complete"] is True
    assert lines[0]["seconds"] == lines[1]["seconds"] < lines[2]["seconds"]


def test_without_text_it_trains_on_the_sample_and_says_so(
    text: list[str], run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"train.en": 1, "train.fr": 3, "valid.en": 5, "valid.fr": 7}
    monkeypatch.setattr("tfm_cli.training.data.sample_path", lambda name: text[names[name]])

    result = run_tfm(["train", *TINY_SHAPE, "--max-updates", "1", "--device", "cpu"])

    assert result.code == 0, result.err
    first = result.err.split("\n")[0]
    assert first == "no training text is given: training on the sample corpus, preset `sample`"
    assert "the sample corpus of tfm" in Path("model/README.md").read_text("utf-8")


# --- the score in the log is the score of the model -----------------------------------------------


@pytest.mark.slow
@representative("beam_size", ["1", "3"])
def test_score_in_the_log_is_what_evaluate_finds(
    beam_size: str, tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    flags = [*TINY_SHAPE, "--device", "cpu", "--precision", "fp32", "--lr", "5e-3"]
    flags += ["--max-tokens", "256", "--lr-warmup", "20", "--set", "training.ema_decay=0.8"]
    # Long enough that no translation is a loop, which a validation would cut short.
    flags += ["--max-updates", "160", "--valid-freq", "80", "--dropout", "0"]
    flags += ["--set", f"validation.beam_size={beam_size}"]
    trained = run_tfm(["train", *tiny_corpus.train_arguments(), *flags])
    assert trained.code == 0, trained.err

    for metric in ("bleu", "chrf"):
        result = run_tfm(
            [
                "evaluate", tiny_corpus.path("valid.de"), "--source", tiny_corpus.path("valid.en"),
                "--model", "model", "--beam", beam_size, "-m", metric, "-b", "-w", "12", "-q",
                "--device", "cpu", "--precision", "fp32",
            ]
        )  # fmt: skip

        facts = weights_facts(Path("model"))
        assert facts is not None
        assert 5 < facts.scores[metric] < 98  # neither untrained nor perfect
        assert float(result.out) == pytest.approx(facts.scores[metric], abs=1e-11)


# --- what it may be given ----------------------------------------------------------------------


def test_sources_and_targets_may_be_several_and_compressed(run_tfm: RunTfm) -> None:
    write("a.en", "one two\n")
    write("a.de", gzip.compress(b"eins zwei\n"))
    write("b.en.gz", gzip.compress(b"three\nfour\n"))
    write("b.de", "drei\nvier")
    files = ["-s", "a.en", "-t", "a.de", "--source", "b.en.gz", "--target", "b.de"]

    result = run_tfm(["train", *files, *SMALL_RUN, "--max-updates", "1"])

    assert result.code == 0, result.err
    assert "training text: 3 pairs" in result.err


def test_metrics_may_be_listed_or_repeated(run_tfm: RunTfm) -> None:
    once = run_tfm(["train", "--dump-config", "--valid-metrics", "loss, bleu"])
    twice = run_tfm(["train", "--dump-config", "--valid-metrics=loss", "--valid-metrics=bleu"])

    assert 'metrics = ["loss", "bleu"]' in once.out
    assert once.out == twice.out


@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        (["--attention-dropout", "--transformer-dropout-attention"], "attention_dropout"),
        (
            ["--activation-dropout", "--relu-dropout", "--transformer-dropout-ffn"],
            "activation_dropout",
        ),
        (["--word-dropout"], "word_dropout"),
    ],
)
def test_dropout_has_the_names_of_other_toolkits(
    flags: list[str], setting: str, run_tfm: RunTfm
) -> None:
    dumped = {run_tfm(["train", "--dump-config", flag, "0.25"]).out for flag in flags}

    assert len(dumped) == 1
    assert f"\n{setting} = 0.25\n" in dumped.pop()


@pytest.mark.parametrize(
    "arguments", [[], ["--preset", "small"], ["--preset", "base", "-s", "a", "-t", "b"]]
)
def test_dumped_settings_give_the_same_settings(arguments: list[str], run_tfm: RunTfm) -> None:
    more = ["--dropout", "0.25", "--set", "search.beam_size=7", "--max-time", "2h"]
    dumped = run_tfm(["train", "--dump-config", *arguments, *more])
    write("run.toml", dumped.out)

    again = run_tfm(["train", "--dump-config", "--config", "run.toml"])

    assert (dumped.code, dumped.err) == (0, "")
    assert again.out == dumped.out
    assert read_toml(Path("run.toml"))["search"]["beam_size"] == 7


def test_dumped_settings_say_what_each_of_them_is(run_tfm: RunTfm) -> None:
    lines = run_tfm(["train", "--dump-config"]).out.split("\n")

    settings = [number for number, line in enumerate(lines) if " = " in line and line[0] != "#"]
    assert len(settings) > 60
    assert all(lines[number - 1].startswith("# ") for number in settings[1:])  # but the preset
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines).replace("\n# ", " ")
    assert "[fp32, bf16, fp16" in text or "[auto, fp32, bf16" in text  # choices
    assert "Hypotheses kept for each segment; 1 is greedy search. [1 to 256]\nbeam_size = 4" in text


def test_settings_of_a_model_may_be_those_of_another_run(text: list[str], run_tfm: RunTfm) -> None:
    arguments = [*text, *SMALL_RUN, "--max-updates", "1"]
    run_tfm(["train", *arguments, "-o", "model"])
    dumped = run_tfm(["train", *arguments, "--dump-config"])

    by_model = run_tfm(["train", "--config", "model/config.json", "--dump-config"])
    changed = run_tfm(["train", "-c", "model/config.json", "--set", "model.width=16", "-o", "b"])

    assert by_model.out == dumped.out
    assert changed.code == 0, changed.err
    assert load_config(Path("b")).settings.model.width == 16


def test_settings_may_come_from_a_pipe(run_tfm: RunTfm) -> None:
    dumped = run_tfm(["train", "--dump-config", "--dropout", "0.25"]).out
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=[dumped])
    writer.start()

    result = run_tfm(["train", "--dump-config", "--config", "pipe"])

    writer.join()
    assert result.out == dumped


def test_json_that_is_no_config_of_a_model_is_refused(run_tfm: RunTfm) -> None:
    write("run.json", '{"model": {"width": 3}}')

    result = run_tfm(["train", "--config", "run.json"])

    assert result.code == 4
    assert result.err.startswith("error: run.json: is not a model config")


def test_dumped_settings_train_the_same_model(text: list[str], run_tfm: RunTfm) -> None:
    arguments = [*text, *SMALL_RUN, "--max-updates", "1"]
    write("run.toml", run_tfm(["train", *arguments, "--dump-config"]).out)

    run_tfm(["train", *arguments, "-o", "by-flags"])
    result = run_tfm(["train", "-c", "run.toml", "-o", "by-file"])

    assert result.code == 0, result.err
    files = [Path(name) / "model.safetensors" for name in ("by-flags", "by-file")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_config(Path("by-file")) == load_config(Path("by-flags"))


@pytest.mark.parametrize(
    "more", [[], ["--preset", "tiny"], ["--set", "training.max_updates=5"]], ids=str
)
def test_recipe_of_the_sample_never_meets_other_text(
    more: list[str], text: list[str], run_tfm: RunTfm
) -> None:
    write("run.toml", run_tfm(["train", "--dump-config"]).out)

    result = run_tfm(["train", "--config", "run.toml", *text, *more, "-o", "model"])

    assert result.code == 2
    assert result.err.startswith("error: run.toml: has the recipe of the sample corpus")
    assert "tfm train -s SOURCE -t TARGET --dump-config" in result.err
    assert not Path("model").exists()


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_no_line_of_a_run_is_wider_than_the_terminal_and_no_word_is_broken(
    columns: int, text: list[str]
) -> None:
    flags = ["--max-updates", "12", "--disp-freq", "5", "--valid-freq", "6"]
    flags += ["--set", "validation.samples=1"]

    lines = on_terminal(["train", *text, *SMALL_RUN, *flags], columns)

    assert max(map(len, lines)) <= columns
    bars = [line for line in lines if re.match(r"update \d+/12 +━", line)]
    assert bars
    assert all(len(line) >= columns - 1 for line in bars)
    assert any(re.search(r" loss [\d.]+ .* \d+ tok/s .* left$", line) for line in bars)
    plan = "12 updates = [0-9.]+ epochs, about [0-9]+s at [0-9,]+ target tokens a"
    assert len([line for line in lines if re.match(plan, line)]) == 1
    (reference,) = {line for line in lines if line.startswith("  1 reference    ")}
    assert lines.count(reference) == 2  # one for each validation
    progress = [line for line in lines if re.match(r"update +\d+  ", line)]
    assert len(progress) == 1  # the last one stays
    words = " ".join(lines).split()
    assert {"(--max-updates);", "`model`"} <= set(words)


@pytest.mark.parametrize("key", ["source", "pairs"])
def test_recipe_of_the_sample_in_a_file_that_names_other_text_is_refused(
    key: str, run_tfm: RunTfm
) -> None:
    sample = run_tfm(["train", "--dump-config"]).out
    write("run.toml", sample.replace(f"\n{key} = []", f'\n{key} = ["mine"]'))

    result = run_tfm(["train", "--config", "run.toml", "--dump-config"])

    assert result.code == 2
    assert "run.toml: has the recipe of the sample corpus" in result.err


def test_preset_of_the_sample_is_refused_for_other_text(run_tfm: RunTfm) -> None:
    result = run_tfm(["train", "--preset", "sample", "-s", "a", "-t", "b", "--dump-config"])

    assert result.code == 2
    assert "`--preset`: has the recipe of the sample corpus" in result.err


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_chosen_by_its_name(preset: str, run_tfm: RunTfm) -> None:
    result = run_tfm(["train", "--preset", preset, "-s", "a", "-t", "b", "--dump-config"])

    expected = resolve(preset=preset, flags={"data": {"source": ("a",), "target": ("b",)}})
    write("run.toml", result.out)
    assert read_toml(Path("run.toml")) == to_mapping(expected)
