"""`tfm train -o RUN` resumes the run in a directory with its own settings and text."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import TINY_SHAPE, RunTfm, TinyCorpus
from tests.runs import SMALL_RUN, left_behind, write_part
from tfm_cli.model_directory.config_file import load_config


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text(tiny_corpus: TinyCorpus, tmp_path: Path) -> list[str]:
    (tmp_path / "text").mkdir()
    return write_part(tiny_corpus, tmp_path / "text", pairs=20, valid=2)


def command(text: list[str], output: str, *more: str) -> list[str]:
    return ["train", *text, *SMALL_RUN, "--seed", "7", "-o", output, *more]


def test_output_alone_resumes_to_the_bits_of_the_whole_command(
    text: list[str], run_tfm: RunTfm
) -> None:
    for name in ("one", "two", "whole"):
        run_tfm(command(text, name, "--max-updates", "5" if name == "whole" else "3"))

    alone = run_tfm(["train", "-o", "one", "--max-updates", "5"])
    repeated = run_tfm(command(text, "two", "--max-updates", "5"))

    assert (alone.code, repeated.code) == (0, 0), alone.err
    assert "resuming after update 3 of `one`" in alone.err
    assert left_behind(Path("one")) == left_behind(Path("two")) == left_behind(Path("whole"))
    assert load_config(Path("one")).settings == load_config(Path("whole")).settings


def test_finished_run_is_reported_and_left_as_it_is(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(command(text, "run", "--max-updates", "2"))
    before = left_behind(Path("run")), Path("run/metrics.jsonl").read_bytes()

    result = run_tfm(["train", "-o", "run"])

    assert result.code == 0, result.err
    line = "the run is finished: it stopped after update 2: 2 updates made (--max-updates); best "
    assert line in result.err
    assert (left_behind(Path("run")), Path("run/metrics.jsonl").read_bytes()) == before


def test_finished_run_needs_its_text_no_more(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(command(text, "run", "--max-updates", "2"))
    Path("text/train.en").unlink()

    finished = run_tfm(["train", "-o", "run"])
    longer = run_tfm(["train", "-o", "run", "--max-updates", "3"])
    shutil.copy("text/train.de", "other.en")
    of_other_text = run_tfm(["train", "-o", "run", "-s", "other.en"])

    assert (finished.code, longer.code, of_other_text.code) == (0, 3, 2), of_other_text.err
    assert "the run is finished: it stopped after update 2: 2 updates made" in finished.err


@pytest.mark.parametrize("lost", ["checkpoints", "weights"])
def test_run_without_its_text_and_more_is_not_finished(
    lost: str, text: list[str], run_tfm: RunTfm
) -> None:
    run_tfm(command(text, "run", "--max-updates", "2"))
    Path("text/train.en").unlink()
    if lost == "weights":
        Path("run/model.safetensors").unlink()
    else:
        shutil.rmtree("run/checkpoints")
        Path("run/checkpoints/update-9").mkdir(parents=True)

    result = run_tfm(["train", "-o", "run"])

    assert result.code == 3
    assert "there is no such file" in result.err


def test_time_limit_is_that_of_a_command(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(command(text, "run", "--max-updates", "2", "--max-time", "1h"))

    result = run_tfm(["train", "-o", "run", "--max-updates", "4"])

    assert result.code == 0, result.err
    assert load_config(Path("run")).settings.training.max_time == ""


def test_text_that_moved_is_named_with_its_flags(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(command(text, "run", "--max-updates", "2"))
    Path("text/train.en").rename("moved.en")
    Path("text/valid.de").rename("moved.de")

    missing = run_tfm(["train", "-o", "run", "--max-updates", "3"])
    found = run_tfm(["train", "-o", "run", "-s", "moved.en", "-vt", "moved.de"])

    assert missing.code == 3
    assert missing.err.split("\n") == [
        "error: 2 files cannot be used",
        f"  {text[1]}: there is no such file",
        f"  {text[7]}: there is no such file",
        "hint: if the text of this run has moved, give its new place with `--source PATH` "
        "`--valid-target PATH`",
        "",
    ]
    assert found.code == 0, found.err
    assert "the run is finished" in found.err
    assert load_config(Path("run")).settings.data.source == ("moved.en",)
    assert load_config(Path("run")).settings.data.target == (text[3],)


def test_other_text_in_its_place_is_refused(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(command(text, "run", "--max-updates", "2"))
    lines = Path(text[1]).read_text("utf-8").split("\n")
    Path("other.en").write_text("\n".join([lines[1], lines[0], *lines[2:]]), "utf-8")
    before = left_behind(Path("run"))

    result = run_tfm(["train", "-o", "run", "-s", "other.en", "--max-updates", "3"])

    assert result.code == 2
    assert "error: run: the training text is not the one this run began with\n" in result.err
    assert "use `--pretrained-model run` and another `--output`" in result.err
    assert left_behind(Path("run")) == before


def test_same_text_in_one_file_takes_the_place_of_two(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(command(text, "run", "--max-updates", "2"))
    sides = [Path(text[i]).read_text("utf-8").split("\n")[:-1] for i in (1, 3)]
    pairs = "".join(f"{source}\t{target}\n" for source, target in zip(*sides, strict=True))
    Path("pairs.tsv").write_text(pairs, "utf-8")

    result = run_tfm(["train", "-o", "run", "--pairs", "pairs.tsv", "--max-updates", "3"])

    assert result.code == 0, result.err
    data = load_config(Path("run")).settings.data
    assert (data.source, data.target, data.pairs) == ((), (), ("pairs.tsv",))


def test_text_from_standard_input_is_asked_for_again(text: list[str], run_tfm: RunTfm) -> None:
    pairs = "one two\teins zwei\n" * 20
    run = ["train", "--pairs", "-", *SMALL_RUN, "--set", "data.pairs_format=tsv", "-o", "run"]
    assert run_tfm([*run, "--max-updates", "1"], pairs).code == 0

    refused = run_tfm(["train", "-o", "run", "--max-updates", "2"])
    resumed = run_tfm(["train", "-o", "run", "--max-updates", "2", "--pairs", "-"], pairs)

    assert refused.code == 2
    assert refused.err == (
        "error: run: the run in it reads its text from standard input\n"
        "hint: give the text again with `--pairs -`, or as a file with `--pairs FILE`\n"
    )
    assert resumed.code == 0, resumed.err


def test_tokenizer_that_the_run_began_with_is_needed_no_more(
    text: list[str], run_tfm: RunTfm
) -> None:
    run_tfm(command(text, "first", "--max-updates", "1"))
    shutil.copy("first/tokenizer.model", "own.model")
    shape = [each for each in TINY_SHAPE if not each.startswith(("--vocab", "60"))]
    run = ["train", *text, *shape, "--device", "cpu", "--tokenizer", "own.model", "-o", "run"]
    begun = run_tfm([*run, "--max-updates", "1"])
    Path("own.model").unlink()

    result = run_tfm(["train", "-o", "run", "--max-updates", "2"])

    assert begun.code == 0, begun.err
    assert result.code == 0, result.err


def test_settings_of_the_run_are_those_that_are_dumped(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(command(text, "run", "--max-updates", "1"))

    result = run_tfm(["train", "-o", "run", "--disp-freq", "3", "--dump-config"])

    assert "\nseed = 7\n" in result.out
    assert "\ndisp_freq = 3\n" in result.out
    assert f"\nsource = {json.dumps([text[1]])}\n" in result.out


# --- the sample corpus ----------------------------------------------------------------------------


@pytest.fixture
def sample(text: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the sample corpus by a smaller one."""
    names = {"train.en": 1, "train.fr": 3, "valid.en": 5, "valid.fr": 7}
    monkeypatch.setattr("tfm_cli.training.data.sample_path", lambda name: text[names[name]])


@pytest.mark.usefixtures("sample")
def test_run_on_the_sample_is_resumed_and_learns_no_other_text(
    text: list[str], run_tfm: RunTfm
) -> None:
    begun = run_tfm(["train", *TINY_SHAPE, "--max-updates", "1", "--device", "cpu"])

    resumed = run_tfm(["train", "--max-updates", "2"])
    other = run_tfm(["train", *text])

    assert (begun.code, resumed.code) == (0, 0), resumed.err
    assert "resuming after update 1 of `model`" in resumed.err
    assert other.code == 2
    assert other.err == (
        "error: model: holds a run on the sample corpus, not on this text\n"
        "hint: name another `--output`, or start again with `--overwrite`\n"
    )


@pytest.mark.usefixtures("sample")
def test_sample_replaces_no_other_model(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(command(text, "run", "--max-updates", "1"))
    before = left_behind(Path("run"))

    result = run_tfm(["train", "-o", "run", "--overwrite"])

    assert result.code == 2
    assert result.err.startswith(
        "error: run: holds a model of other text, which the sample corpus would replace\n"
        "hint: name the text with `--source` and `--target`"
    )
    assert left_behind(Path("run")) == before


@pytest.mark.usefixtures("sample")
def test_sample_is_not_learned_where_a_run_on_other_text_began(
    text: list[str], run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        Path("run/tokenizer.model").touch()  # so that the marker stays
        raise RuntimeError("killed")

    with monkeypatch.context() as inside:
        inside.setattr("tfm_cli.training.run.load_initial_parts", fail)
        assert run_tfm(command(text, "run")).code == 70
        assert run_tfm(["train", "-o", "sample", *TINY_SHAPE]).code == 70

    refused = run_tfm(["train", "-o", "run"])
    begun = run_tfm(["train", "-o", "sample", *TINY_SHAPE, "--max-updates", "1"])

    assert refused.code == 2
    assert "holds the beginning of a run on other text, and no text is given" in refused.err
    assert begun.code == 0, begun.err
    assert run_tfm(command(text, "run", "--max-updates", "1")).code == 0
