"""How `tfm translate` may not be called: all of it is told before the model is read."""

import gzip
import math
from pathlib import Path

import pytest

from tests.conftest import RunTfm
from tfm_cli.translation.translator import Translator


@pytest.fixture(autouse=True)
def _no_model_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("the model is read before the mistake is told")

    monkeypatch.setattr(Translator, "load", load)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        "--beam-size 0", "--beam-size x", "--n-best 0", "--top-p 2", "--length-penalty -1",
        "--max-length 1", "--format xml", "--no-repeat-ngram-size -1", "--tsv-column 0",
        "--on-long drop", "--no-such-flag", "file.en",
    ],
)  # fmt: skip
def test_value_that_a_flag_cannot_have_is_a_usage_error(run_tfm: RunTfm, arguments: str) -> None:
    result = run_tfm(["translate", *arguments.split()])

    assert (result.code, result.out) == (2, "")
    is_value = arguments not in ("--no-such-flag", "file.en")
    assert result.err.startswith("error: `--" if arguments != "file.en" else "error: unexpected")
    assert ("hint: `tfm translate --help` lists" in result.err) != is_value
    assert arguments.split()[0] in result.err


@pytest.mark.parametrize(
    "arguments",
    ["--temperature 0", "--temperature 1e300", "--top-p 0", "--max-length-factor 0",
     "--repetition-penalty 0", "--repetition-penalty 1e-300"],
)  # fmt: skip
def test_number_outside_the_bounds_of_a_setting_is_a_usage_error(
    run_tfm: RunTfm, arguments: str
) -> None:
    test_value_that_a_flag_cannot_have_is_a_usage_error(run_tfm, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--greedy --beam 4", "`--greedy` and `--beam-size 4` exclude each other"),
        ("--sampling -b 2", "`--sampling` and `--beam-size 2` exclude each other"),
        ("--sampling --greedy", "`--greedy` and `--sampling` exclude each other"),
        ("--n-best 5 --beam 4", "`--n-best` must be at most `--beam-size`, got 5 and 4"),
        ("--n-best 2 --greedy", "`--greedy` and `--n-best 2` exclude each other"),
        ("--json-input --tsv", "`--json-input` and `--tsv` exclude each other"),
        ("--json-input --force-decode", "`--json-input` and `--force-decode` exclude each other"),
        ("--tsv-column 2", "`--tsv-column` needs `--tsv`"),
        ("--tsv -f json", "`--tsv` and `--format json` exclude each other"),
        ("--tsv --n-best 2", "`--tsv` and `--n-best 2` exclude each other"),
        (
            "--precision fp8",
            "`--precision` must be one of `auto`, `fp32`, `bf16`, `fp16`, `int8`, got `fp8`",
        ),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(
    run_tfm: RunTfm, arguments: str, message: str
) -> None:
    result = run_tfm(["translate", *arguments.split()])

    assert (result.code, result.out, result.err) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["length-penalty", "temperature", "top-p", "max-length-factor", "repetition-penalty"]
)
def test_number_that_is_none_is_refused(run_tfm: RunTfm, name: str, value: float) -> None:
    result = run_tfm(["translate", f"--{name}", str(value)])

    assert (result.code, result.out) == (2, "")
    assert name in result.err


def test_missing_model_is_told(run_tfm: RunTfm) -> None:
    result = run_tfm(["translate", "--model", "none"], "one\n")

    assert (result.code, result.out) == (4, "")
    assert result.err.startswith("error: none: there is no such model directory\nhint: train one ")


def test_missing_input_is_told(run_tfm: RunTfm) -> None:
    result = run_tfm(["translate", "--input", "none.en"])

    assert (result.code, result.out) == (3, "")
    assert result.err == "error: none.en: cannot be read: No such file or directory\n"


def test_output_that_cannot_be_written_is_told_first(run_tfm: RunTfm) -> None:
    Path("file").touch()

    for output, reason in (
        ("file/out", f"`{Path.cwd() / 'file'}` is not a directory"),
        (".", "it is a directory"),
        ("x" * 300, "File name too long"),
    ):
        result = run_tfm(["translate", "--output", output], "one\n")

        assert (result.code, result.out) == (5, "")
        assert result.err == f"error: {output}: cannot be written: {reason}\n"


@pytest.mark.parametrize("output", ["text", "./text", "link", "hard"])
def test_output_that_is_the_input_is_refused(run_tfm: RunTfm, output: str) -> None:
    Path("text").write_bytes(b"one\n")
    Path("link").symlink_to("text")
    Path("hard").hardlink_to("text")

    result = run_tfm(["translate", "-i", "text", "-o", output])

    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: {output}: is the same file as `text`, which is read\n"
        "hint: name another one with `--output`\n"
    )
    assert Path("text").read_bytes() == b"one\n"


def test_what_is_quoted_cannot_steer_the_terminal(run_tfm: RunTfm) -> None:
    result = run_tfm(["translate", "--input", "a\x1b[2J\u202eb"])

    assert result.err == "error: a\\u001b[2J\\u202eb: cannot be read: No such file or directory\n"


def test_help_has_an_example(run_tfm: RunTfm) -> None:
    result = run_tfm(["translate", "--help"])

    assert (result.code, result.err) == (0, "")
    assert "Example:  tfm translate " in result.out


class TestWithAModel:
    @pytest.fixture(autouse=True)
    def _model_is_read(self, monkeypatch: pytest.MonkeyPatch, _no_model_is_read: None) -> None:
        monkeypatch.undo()

    @pytest.mark.parametrize(
        ("device", "code", "message"),
        [
            ("tpu", 2, "error: unknown device `tpu`, expected auto, cpu, cuda, cuda:N or mps\n"),
            ("cuda:99", 5, "error: there is no device `cuda:99`; this machine has cpu"),
        ],
    )
    def test_device_that_is_not_there_is_told(
        self, run_tfm: RunTfm, tiny_model: Path, device: str, code: int, message: str
    ) -> None:
        result = run_tfm(["translate", "-m", str(tiny_model), "--device", device], "one\n")

        assert (result.code, result.out) == (code, "")
        assert result.err.startswith(message)

    def test_damaged_input_leaves_the_old_output(
        self, run_tfm: RunTfm, tiny_model: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "in.gz").write_bytes(gzip.compress(b"one\n" * 99)[:-9])
        (tmp_path / "out").write_bytes(b"old\n")

        result = run_tfm(
            ["translate", "-m", str(tiny_model), "-i", str(tmp_path / "in.gz"),
             "-o", str(tmp_path / "out")]
        )  # fmt: skip

        assert result.code == 3
        assert "in.gz: the gzip data is damaged or cut off after line" in result.err
        assert (tmp_path / "out").read_bytes() == b"old\n"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gz", "out"]


@pytest.mark.parametrize("command", ["translate", "shortlist -s a -t b"])
def test_threads_of_a_process_are_gone_and_workers_named_instead(
    run_tfm: RunTfm, command: str
) -> None:
    result = run_tfm([*command.split(), "--cpu-threads", "2"])

    assert result.code == 2
    assert "use `--workers N` for N cores" in result.err
