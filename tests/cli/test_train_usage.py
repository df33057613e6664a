"""What is wrong with a call of `tfm train` is told at once, and before any work."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tests.runs import SMALL_RUN, write_part


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text(tiny_corpus: TinyCorpus, tmp_path: Path) -> list[str]:
    return write_part(tiny_corpus, tmp_path, pairs=20, valid=2)


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def fails(run_tfm: RunTfm, *arguments: str, code: int) -> list[str]:
    """The lines of the message of a run that fails and leaves nothing."""
    result = run_tfm(["train", *SMALL_RUN, "--max-updates", "1", *arguments])

    assert result.code == code, result.err
    assert result.out == ""
    assert not Path("model").exists()
    return [line for line in result.err.split("\n") if not line.startswith("tokenizer:")][:-1]


def test_all_wrong_settings_are_told_at_once(run_tfm: RunTfm) -> None:
    write("run.toml", "[training]\nmax_update = 3\nseed = -1\n")

    stderr = fails(
        run_tfm, "-c", "run.toml", "--set", "model.width=wide", "-s", "a", "--max-time", "soon",
        "--device", "gpu", "--set", "training.clip_norm=nan", code=2,
    )  # fmt: skip

    assert stderr == [
        "error: the settings have 7 problems",
        "  model.width: must be a whole number, got `wide`",
        "  training.max_update: unknown setting; did you mean `max_updates`?",
        "  training.seed: must be at least 0, got -1",
        "  training.clip_norm: must be a finite number, got nan",
        "  --target: must be as many files as --source, got 0 and 1",
        "  --device: must be auto, cpu, cuda, cuda:N or mps, got `gpu`",
        "  --max-time: must be a duration such as 90s, 20m or 2h35m, got `soon`",
    ]


def test_missing_target_is_told(run_tfm: RunTfm) -> None:
    stderr = fails(run_tfm, "-s", write("a.en", "one\n"), code=2)

    assert stderr == [
        "error: the settings have 1 problem",
        "  --target: must be as many files as --source, got 0 and 1",
    ]


def test_validation_text_alone_is_refused(run_tfm: RunTfm) -> None:
    stderr = fails(run_tfm, "-vs", "a", "-vt", "b", code=2)

    assert stderr[1:] == ["  --source: is missing: there is validation text, but no training text"]


def test_unknown_preset_is_refused_with_the_nearest(run_tfm: RunTfm) -> None:
    stderr = fails(run_tfm, "--preset", "bsae", code=2)

    assert stderr[1:] == [
        "  --preset: must be one of `auto`, `tiny`, `small`, `base`, `big`, got `bsae`; "
        "did you mean `base`?"
    ]


def test_settings_of_a_file_are_not_called_flags(run_tfm: RunTfm) -> None:
    write("run.toml", 'preset = "x"\n[training]\nseed = -1\n')

    result = run_tfm(["train", "-c", "run.toml", "--set", "validation.metrics=no"])

    assert result.code == 2
    assert [line.partition(":")[0] for line in result.err.split("\n")[:-1]] == [
        "error", "  preset", "  training.seed", "  validation.metrics",
    ]  # fmt: skip


def test_all_missing_files_are_told_at_once(run_tfm: RunTfm) -> None:
    files = ["-s", write("a.en", "one\n"), "-t", "a.de", "-vs", "v.en", "-vt", "."]

    stderr = fails(run_tfm, *files, code=3)

    assert stderr == [
        "error: 3 files cannot be used",
        "  a.de: there is no such file",
        "  v.en: there is no such file",
        "  .: is a directory, expected a file",
    ]


def test_r20_all_misaligned_files_are_told_at_once(run_tfm: RunTfm) -> None:
    write("two", "one\ntwo\n")
    write("one", "one\n")
    files = ["-s", "two", "-s", "one", "-t", "one", "-t", "two", "-vs", "two", "-vt", "one"]

    stderr = fails(run_tfm, *files, code=3)

    assert stderr == [
        "error: two and one do not align: 2 and 1 lines",
        "  two and one do not align: 2 and 1 lines",
        "  one and two do not align: 1 and 2 lines",
        "hint: line N of one file must be the translation of line N of the other",
    ]


def test_invalid_utf8_is_refused_with_file_line_and_byte(run_tfm: RunTfm) -> None:
    write("a.en", "one\ntwo\n")
    write("a.de", b"eins\nzw\xe9i\n")

    stderr = fails(run_tfm, "-s", "a.en", "-t", "a.de", code=3)

    assert stderr == [
        "error: a.de:2: byte 3: 0xe9 is not UTF-8",
        "hint: convert the file to UTF-8 (`iconv`) or remove the line on both sides",
    ]


@pytest.mark.parametrize("content", ["", "\n\n", "  \n\t\n\u3000\n"])
def test_text_without_words_is_refused(content: str, run_tfm: RunTfm) -> None:
    files = ["-s", write("a.en", content), "-t", write("a.de", content)]

    stderr = fails(run_tfm, *files, code=3)

    assert stderr == ["error: a.en, a.de: no line has any text"]


def test_text_that_is_blank_on_one_side_is_refused(run_tfm: RunTfm) -> None:
    files = ["-s", write("a.en", "one\ntwo\n"), "-t", write("a.de", "\n\n")]

    stderr = fails(run_tfm, *files, code=3)

    assert stderr == ["error: a.en: 0 usable pairs, dropped: 2 blank side"]


def test_damaged_gzip_is_refused(run_tfm: RunTfm) -> None:
    whole = gzip.compress(b"one two three\n" * 100)
    files = ["-s", write("a.gz", whole[:-12]), "-t", write("a.de", "eins\n")]

    stderr = fails(run_tfm, *files, code=3)

    assert stderr[0].startswith("error: a.gz: the gzip data is damaged or cut off after line ")


@pytest.mark.parametrize("place", ["file", "file/model"])
def test_output_that_cannot_be_written_is_told_before_any_work(place: str, run_tfm: RunTfm) -> None:
    write("file", "")

    stderr = fails(run_tfm, "-s", "none", "-t", "none", "-o", place, code=5)

    assert stderr[0].startswith(f"error: {place}: cannot be written: ")


def test_output_with_other_files_is_refused_before_any_work(run_tfm: RunTfm) -> None:
    Path("mine").mkdir()
    write("mine/notes.txt", "")

    for more in ([], ["--overwrite"]):
        stderr = fails(run_tfm, "-s", "none", "-t", "none", "-o", "mine", *more, code=2)

        assert stderr == [
            "error: mine: is not empty and holds no model: `notes.txt`",
            "hint: name another `--output`",
        ]


def test_changed_settings_are_refused_before_any_work(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(["train", *text, *SMALL_RUN, "--max-updates", "1", "-o", "kept"])

    stderr = fails(run_tfm, "-s", "none", "-t", "none", "-o", "kept", "--seed", "9", code=2)

    assert stderr == [
        "error: kept: holds a run with other settings; 1 change",
        "  training.seed: 1 → 9",
        "hint: keep them as they were, or use `--overwrite` or another `--output`",
    ]


def test_missing_tokenizer_is_told_before_any_work(text: list[str], run_tfm: RunTfm) -> None:
    stderr = fails(run_tfm, *text, "--set", "tokenizer.model=no.model", code=4)

    assert stderr == ["error: no.model: cannot be read: No such file or directory"]


def test_device_that_is_not_there_is_told_before_any_work(text: list[str], run_tfm: RunTfm) -> None:
    stderr = fails(run_tfm, *text, "--device", "cuda:77", code=5)

    assert stderr[0].startswith("error: there is no device `cuda:77`; this machine has cpu")


def test_wrong_call_fails_without_importing_torch(text: list[str]) -> None:
    wrong_calls = [
        ["--lr", "-1"], ["--set", "model.widht=3"], ["-s", "none", "-t", "none"],
        [*text, "-o", "train.en"], [*text, "--set", "tokenizer.model=none"], ["--bad"],
    ]  # fmt: skip
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from tfm_cli.cli import app\n"
        f"for call in {wrong_calls!r}:\n"
        "    assert CliRunner().invoke(app, ['train', *call]).exit_code in (2, 3, 4, 5), call\n"
        "assert 'torch' not in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)


def test_torn_model_is_refused_by_translate(text: list[str], run_tfm: RunTfm) -> None:
    run_tfm(["train", *text, *SMALL_RUN, "--max-updates", "1"])
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        path = Path("model") / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])

        torn = run_tfm(["translate", "--model", "model"], "one two\n")
        path.unlink()
        missing = run_tfm(["translate", "--model", "model"], "one two\n")

        path.write_bytes(whole)
        assert (torn.code, torn.out) == (missing.code, missing.out) == (4, "")
        assert f"model/{name}" in torn.err
        assert f"error: model: has no `{name}`" in missing.err
