"""Jobs of `tfm translate`: a resumed job has the output of one that was not stopped."""

import gzip
import hashlib
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result, RunTfm, TinyCorpus
from tests.tiers import representative
from tests.translation.native_translator import needs_native
from tfm_cli.cli.translate import COMMAND, translate
from tfm_cli.translation import resumable_output
from tfm_cli.translation.segments import Lines, Segmenter


@pytest.fixture
def model(tiny_model: Path) -> list[str]:
    flags = ["--device", "cpu", "--precision", "fp32", "--buffer-size", "7"]
    return ["translate", "--model", str(tiny_model), *flags]


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return `stop(windows, error)`: the next run fails after so many windows, all committed."""
    whole = Segmenter.batches

    def after(windows: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        left = windows

        def batches(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                monkeypatch.setattr(Segmenter, "batches", whole)
                raise error
            return whole(*arguments)

        monkeypatch.setattr(resumable_output, "COMMIT_SECONDS", 0.0)
        monkeypatch.setattr(Segmenter, "batches", batches)

    return after


@pytest.mark.slow
@representative(
    ("flags", "packed"),
    [
        ("--sampling --temperature 5", True),
        ("--n-best 2 --word-scores --with-score", False),
        ("--format json", True),
        ("--force-decode --buffer-size 16", False),
    ],
)
def test_stopped_twice_it_is_equal_to_the_unbroken_run(
    model: list[str], stop: Callable[..., None], run_tfm: RunTfm, tiny_corpus: TinyCorpus,
    tmp_path: Path, flags: str, packed: bool,
) -> None:  # fmt: skip
    text = Path(tiny_corpus.path("test.en")).read_bytes() + b"\n\xff one\r\n\none two"
    (tmp_path / "in").write_bytes(gzip.compress(text) if packed else text)
    (tmp_path / "out").write_bytes(b"old\n")
    command = [*model, *flags.split(), "--input", str(tmp_path / "in")]
    whole = run_tfm(command)

    stop(1)
    first = run_tfm([*command, "-o", str(tmp_path / "out")])
    old = (tmp_path / "out").read_bytes()
    stop(1)
    second = run_tfm([*command, "-o", str(tmp_path / "out")])
    last = run_tfm([*command, "-o", str(tmp_path / "out")])

    assert (first.code, second.code, last.code) == (130, 130, 0)
    lines = 16 if "16" in flags else 7
    kept = "lines are written; the same command resumes after them\ninterrupted\n"
    assert first.err.endswith(f"warning: {tmp_path / 'out'}: {lines} {kept}")
    assert f"{tmp_path / 'out'}: resuming after line {lines}\n" in second.err
    assert old == b"old\n"
    assert (tmp_path / "out").read_bytes() == whole.out.encode()
    assert "U+FFFD: 1 (first: line 42)" in last.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_windows_after_going_on_are_those_of_the_unbroken_run(
    tiny_model: Path, stop: Callable[..., None], run_tfm: RunTfm, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "in").write_bytes(b"one\n" * 200)
    command = ["translate", "--model", str(tiny_model), "-i", str(tmp_path / "in"), "-g"]
    command += ["-o", str(tmp_path / "out")]
    stop(2)
    run_tfm(command)
    sizes: list[tuple[int | None, int]] = []
    whole = Segmenter.batches

    def batches(self: Segmenter, window: Lines) -> Any:
        sizes.append((window.before, len(window.lines)))
        return whole(self, window)

    monkeypatch.setattr(Segmenter, "batches", batches)

    run_tfm(command)

    assert sizes == [(80, 120)]  # after 16 and 64, up to 256


def test_warnings_have_the_line_numbers_of_the_input(
    model: list[str], stop: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"one\n" * 12 + b"one two three four\n")
    command = [*model, "-q", "--max-length", "2", "-i", str(tmp_path / "in")]
    command += ["-o", str(tmp_path / "out")]
    stop(1)
    run_tfm(command)

    result = run_tfm(command)

    assert result.err == "warning: line 13 has 4 tokens, more than 2: split\n"


class TestAfterAStop:
    @pytest.fixture
    def command(
        self, model: list[str], stop: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
    ) -> list[str]:
        """Return a command that was stopped after 14 of 20 lines."""
        (tmp_path / "in").write_bytes(b"one\ntwo\n" * 10)
        command = [*model, "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
        stop(2)
        assert run_tfm(command).code == 130
        return command

    @pytest.mark.parametrize(
        ("flags", "change"),
        [
            ("--beam 2", "--beam-size: was 4, is 2"),
            ("-f json", "--format: was text, is json"),
            ("--precision bf16", "--precision: was fp32, is bf16"),
            ("--tsv", "--tsv: was false, is true"),
            ("--on-long cut", "--on-long: was split, is cut"),
        ],
    )
    def test_other_settings_are_refused_by_name(
        self, command: list[str], run_tfm: RunTfm, tmp_path: Path, flags: str, change: str
    ) -> None:
        result = run_tfm([*command, *flags.split()])

        assert result.code == 2
        assert result.err == (
            f"error: {tmp_path / 'out'}: was begun with other settings; 1 change\n  {change}\n"
            "hint: restore them to resume after line 14, or use `--overwrite` to begin "
            "again\n"
        )
        assert run_tfm(command).code == 0
        assert (tmp_path / "out").read_bytes() == b"eins\nzwei\n" * 10

    def test_other_weights_are_refused(
        self, command: list[str], run_tfm: RunTfm, tiny_model: Path
    ) -> None:
        other = Path(__file__).parents[1] / "golden" / "model_v1"

        result = run_tfm([str(other) if each == str(tiny_model) else each for each in command])

        assert result.code == 2
        assert "\n  weights: was " in result.err

    def test_settings_that_change_nothing_but_speed_may_change(
        self, command: list[str], run_tfm: RunTfm, tmp_path: Path
    ) -> None:
        result = run_tfm([*command, "--buffer-size", "3", "--max-tokens", "50", "--seed", "9"])

        assert result.code == 0
        assert (tmp_path / "out").read_bytes() == b"eins\nzwei\n" * 10

    @needs_native
    def test_batches_may_change_in_int8_as_well(
        self, command: list[str], stop: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
    ) -> None:
        command = [*command, "--precision", "int8", "--overwrite"]
        stop(2)
        assert run_tfm(command).code == 130

        result = run_tfm([*command[:-1], "--buffer-size", "3", "--max-tokens", "50"])

        assert result.code == 0
        assert (tmp_path / "out").read_bytes() == b"eins\nzwei\n" * 10

    def test_it_begins_again_where_that_is_asked_for(
        self, command: list[str], run_tfm: RunTfm, tmp_path: Path
    ) -> None:
        result = run_tfm([*command, "--overwrite", "-f", "json"])

        assert result.code == 0
        assert "going on" not in result.err
        assert len((tmp_path / "out").read_bytes().split(b"\n")) == 21

    @pytest.mark.parametrize("text", [b"one\nfive\n" * 10, b"one\ntwo\n" * 3, b""])
    def test_other_input_is_refused(
        self, command: list[str], run_tfm: RunTfm, tmp_path: Path, text: bytes
    ) -> None:
        (tmp_path / "in").write_bytes(text)

        result = run_tfm(command)

        assert result.code == 3
        assert result.err.endswith(
            f"error: {tmp_path / 'in'}: the first 14 lines changed since the translation\n"
            "hint: give the same input to resume, or use `--overwrite` to begin again\n"
        )

    def test_input_may_change_where_nothing_was_translated(
        self, command: list[str], run_tfm: RunTfm, tmp_path: Path
    ) -> None:
        (tmp_path / "in").write_bytes(b"one\ntwo\n" * 7 + b"five\n")

        assert run_tfm(command).code == 0
        assert (tmp_path / "out").read_bytes() == b"eins\nzwei\n" * 7 + "fünf\n".encode()

    def test_journal_says_what_was_done_by_what(self, command: list[str], tmp_path: Path) -> None:
        progress = json.loads((tmp_path / ".out.progress").read_bytes())

        digest = hashlib.sha256(b"one\ntwo\n" * 7).hexdigest()
        assert progress["position"] == {"lines": 14, "sha256": digest, "window_lines": 7}
        assert progress["bytes"] == len(b"eins\nzwei\n" * 7)
        assert "--seed" not in progress["settings"]
        assert "--buffer-size" not in progress["settings"]
        assert progress["settings"]["--length-penalty"] == 1.0


def test_job_resumes_after_an_invalid_line_is_corrected(
    model: list[str], stop: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    good = b'{"text": "one"}\n'
    (tmp_path / "in").write_bytes(good * 15 + b"?\n")
    command = [*model, "--json-input", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    stop(99)

    first = run_tfm(command)
    (tmp_path / "in").write_bytes(good * 16)
    second = run_tfm(command)

    assert first.code == 3
    assert first.err == (
        f"warning: {tmp_path / 'out'}: 14 lines are written; the same command resumes after "
        f"them\nerror: {tmp_path / 'in'}:16: is not a JSON object: expected a value "
        "at character 1, found `?`\n"
    )
    assert second.code == 0
    assert (tmp_path / "out").read_bytes() == b"eins\n" * 16


def test_job_goes_on_after_an_invalid_line_if_errors_are_reported(
    model: list[str], stop: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    good = b'{"text": "one"}\n'
    (tmp_path / "in").write_bytes(good * 15 + b"?\n" + good * 16 + b"!\n" + good * 20)
    files = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    command = [*model, "--json-input", "--format", "json", *files]
    report = [*command, "--on-error", "report"]
    expected = run_tfm([*report[:-6], "--on-error", "report"], (tmp_path / "in").read_bytes())

    stop(99)
    stopped = run_tfm(command)
    stop(3)
    interrupted = run_tfm(report)
    refused = run_tfm(command)
    finished = run_tfm(report)

    rows = [json.loads(line) for line in expected.out.split("\n")[:-1]]
    message = "is not a JSON object: expected a value at character 1, found"
    assert [row for row in rows if "error" in row] == [
        {"error": f"{message} `?`", "line": 16}, {"error": f"{message} `!`", "line": 33},
    ]  # fmt: skip
    assert [row["line"] - 1 for row in rows if "error" in row] == [
        index for index, row in enumerate(rows) if "error" in row
    ]
    assert (stopped.code, interrupted.code) == (3, 130)
    assert "resuming after line 14" in interrupted.err
    assert "resuming after line 35" in refused.err
    assert refused.code == 3
    assert f"{tmp_path / 'in'}:16: {message}" in refused.err  # it was reported before
    assert "resuming after line 35" in finished.err
    assert (tmp_path / "out").read_text(encoding="utf-8") == expected.out
    for result, name in ((expected, "standard input"), (finished, tmp_path / "in")):
        assert result.code == 3
        assert result.err.endswith(
            f"error: {name}: 2 lines could not be parsed; the others are translated\n"
        )


def test_job_on_standard_input_resumes(
    model: list[str], stop: Callable[..., None], run_tfm: RunTfm, tmp_path: Path
) -> None:
    text, command = b"one\ntwo\n" * 10, [*model, "-o", str(tmp_path / "out")]
    stop(1)

    assert run_tfm(command, text).code == 130
    assert run_tfm(command, text).code == 0
    assert (tmp_path / "out").read_bytes() == b"eins\nzwei\n" * 10


def test_several_processes_cannot_read_a_pipe(
    model: list[str], run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")

    def refused(path: str) -> Result:
        return run_tfm([*model, "--input", path], "one\n")

    for path in ("-", "/dev/null"):
        assert refused(path).code == 2
        assert refused(path).err == (
            f"error: `--input {path}`: 2 processes cannot all read it\n"
            "hint: name a file that each of them can read\n"
        )
    assert refused(str(tmp_path / "none")).code == 3
    logging.getLogger("tfm_cli").setLevel(logging.INFO)


class Terminal(io.StringIO):
    """A stream that looks like a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("to_terminal", [False, True])
def test_bar_is_shown_unless_the_translations_are(
    tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, to_terminal: bool,
) -> None:  # fmt: skip
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", stdout)

    caplog.set_level(logging.INFO, "tfm_cli")  # as a command sets it
    values = {
        "models": [str(tiny_model)], "input_path": tiny_corpus.path("test.en"),
        "output_path": "-" if to_terminal else str(tmp_path / "out"), "training_device": "cpu",
    }  # fmt: skip
    translate(COMMAND.parsed(values))

    assert ("translating: 40 lines, " in shown.getvalue()) == (not to_terminal)
    assert ("lines/s (100 %)" in shown.getvalue()) == (not to_terminal)
    assert "translated 40 lines in " in shown.getvalue()
