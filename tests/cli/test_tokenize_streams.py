import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.conftest import TFM
from tfm_cli.cli import app
from tfm_cli.cli.tokenize import convert_lines
from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.tokenizer.training import train_tokenizer

AWKWARD = (
    "a\rb\n\u2028x\u2029y\n\n  \t \nc\x85d\n\ufeffe\nnot\x00null\n\x1b[0m\x0b\x0c\n日本 ½ 😀\nend"
)
PROGRAM = [*TFM, "tokenize"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def start(*arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
    """The program, as a shell starts it."""
    return subprocess.Popen([*PROGRAM, *arguments], env=ENVIRONMENT, **pipes)


def tokenize(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["tokenize", *arguments], input=stdin, prog_name="tfm")


def converted(command: str, text: bytes, *arguments: str) -> bytes:
    """What encode or decode writes, byte for byte."""
    result = tokenize(command, "-m", "m.model", "-o", "converted", *arguments, stdin=text)
    assert result.exit_code == 0, result.stderr
    return Path("converted").read_bytes()


@pytest.fixture(scope="module")
def model_bytes() -> bytes:
    text = [f"line {number} of {number * 7919 % 1000} on the mät" for number in range(400)]
    return train_tokenizer(text, TokenizerConfig(vocab_size=320), seed=1)


@pytest.fixture(autouse=True)
def _model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_bytes: bytes) -> None:
    """`m.model` and a small `text`, in a directory of their own."""
    monkeypatch.chdir(tmp_path)
    Path("m.model").write_bytes(model_bytes)
    Path("text").write_text("line 1\nline 2\n")


@pytest.mark.parametrize(
    "text",
    [
        AWKWARD.encode(), b"", b"\n", b"no line feed", b"\r\n\r\n", b"\xff\xfe\x41\n\xed\xa0\x80\n",
        b"\xc3\n" * 700, b"the mat " * 10_000 + b"\n" + b"\n", b"\x1f", b"\x1f\n",
    ],
    ids=["awkward", "empty", "LF", "no LF", "CRLF", "invalid", "many", "long", "1f", "1f LF"],
)  # fmt: skip
@pytest.mark.parametrize("output_format", ["piece", "id"])
def test_as_many_lines_out_as_in(text: bytes, output_format: str) -> None:
    if text.startswith(b"\xff\xfe"):
        text = b"x\n" + text  # at the start it would be a UTF-16 file
    expected = text.count(b"\n") + (not text.endswith(b"\n") and text != b"")

    encoded = converted("encode", text, "--output-format", output_format)
    decoded = converted("decode", encoded, "--input-format", output_format)

    assert encoded.count(b"\n") == decoded.count(b"\n") == expected
    encoded.decode("utf-8")
    decoded.decode("utf-8")


def test_long_lines_are_converted_a_few_at_a_time() -> None:
    Path("long").write_bytes((b"x" * 500_000 + b"\n") * 5)
    batches: list[tuple[int, int]] = []

    def convert(lines: list[str], name: str, first: int) -> list[str]:
        batches.append((first, len(lines)))
        return [str(first + offset) for offset in range(len(lines))]

    convert_lines(["long", "text"], "numbers", convert)

    assert batches == [(1, 2), (3, 2), (5, 1), (1, 2)]
    assert Path("numbers").read_text() == "1\n2\n3\n4\n5\n1\n2\n"


def test_invalid_utf8_is_replaced_and_counted() -> None:
    result = tokenize("encode", "-m", "m.model", stdin=b"good\nb\xffd\nb\xe4d\n")

    assert result.exit_code == 0
    assert result.stderr == (
        "warning: standard input: lines with invalid UTF-8, replaced by U+FFFD: 2 (first: line 2)\n"
    )


def test_encode_reads_several_inputs_as_one() -> None:
    Path("a").write_bytes(b"one")
    Path("b.gz").write_bytes(gzip.compress(b"two\n\n"))
    apart = [tokenize("encode", "-m", "m.model", path).stdout for path in ("a", "b.gz")]

    by_argument = tokenize("encode", "-m", "m.model", "a", "b.gz")
    by_flag = tokenize("encode", "-m", "m.model", "--input", "a", "-i", "b.gz")

    assert by_argument.stdout == by_flag.stdout == "".join(apart)


def test_decode_counts_the_lines_of_each_input() -> None:
    Path("good").write_text("4\n" * 300)
    Path("bad").write_text("4\n" * 299 + "x\n")

    result = tokenize("decode", "-m", "m.model", "--input-format", "id", "good", "bad")

    assert result.stderr.startswith("error: bad:300: `x` is not an id")


def test_a_failed_command_leaves_the_old_output() -> None:
    Path("out").write_text("old")
    Path("ids").write_text("4\nx\n")

    result = tokenize("decode", "-m", "m.model", "--input-format", "id", "ids", "-o", "out")

    assert result.exit_code == 3
    assert Path("out").read_text() == "old"
    assert not list(Path().glob("*.part"))


def test_no_torch_is_imported_from_start_to_end() -> None:
    program = (
        "import sys; from tfm_cli.cli import app\n"
        "assert not {'torch', 'sentencepiece'} & set(sys.modules), 'for --help'\n"
        "app(['tokenize', 'encode', '-m', 'm.model', 'text'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules, 'for tokenize encode'\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, check=False
    )

    assert (run.returncode, run.stderr) == (0, b"")


def test_a_line_is_answered_before_the_next_one_comes() -> None:
    with start("encode", "-m", "m.model", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin
        assert program.stdout
        for line in (b"on the mat\n", b"\n", b"line 7\n"):
            program.stdin.write(line)
            program.stdin.flush()
            answer = program.stdout.readline()  # would wait for ever
            assert answer == converted("encode", line)
        program.stdin.close()
        assert program.stdout.read() == b""
    assert program.returncode == 0


def test_a_reader_that_leaves_ends_the_program_silently() -> None:
    with (
        subprocess.Popen(["yes", "hello"], stdout=subprocess.PIPE) as source,
        start(
            "encode", "-m", "m.model",
            stdin=source.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as program,
    ):  # fmt: skip
        assert source.stdout
        assert program.stdout
        source.stdout.close()
        assert program.stdout.readline() == converted("encode", b"hello\n")
        program.stdout.close()
        assert program.stderr
        assert program.stderr.read() == b""
    assert program.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_told_in_one_line() -> None:
    with (
        Path("/dev/full").open("wb") as full,
        start("encode", "-m", "m.model", "text", stdout=full, stderr=subprocess.PIPE) as program,
    ):
        assert program.stderr
        stderr = program.stderr.read()

    assert stderr == b"error: standard output: cannot be written: No space left on device\n"
    assert program.returncode == 5


def test_output_is_utf8_in_any_locale() -> None:
    environment = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONUTF8": "0"}

    run = subprocess.run(
        [*PROGRAM, "encode", "-m", "m.model"],
        env=environment, input="mät".encode(), capture_output=True, check=True,
    )  # fmt: skip

    assert run.stdout == converted("encode", "mät".encode())


def test_an_interrupt_ends_encoding() -> None:
    with start(
        "encode", "-m", "m.model",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as program:  # fmt: skip
        assert program.stdin
        assert program.stdout
        assert program.stderr
        program.stdin.write(b"a\n")
        program.stdin.flush()
        program.stdout.readline()
        program.send_signal(signal.SIGINT)

        assert program.stderr.read() == b"interrupted\n"
    assert program.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_reading_and_leaves_nothing(number: signal.Signals) -> None:
    os.mkfifo("pipe")
    with start("train", "-i", "pipe", "--model-prefix", "new", stderr=subprocess.PIPE) as program:
        with Path("pipe").open("wb"):  # waits until the program reads
            program.send_signal(number)
            program.wait(timeout=60)

        assert program.stderr
        assert b"Traceback" not in program.stderr.read()
    assert program.returncode == 128 + number
    assert not list(Path().glob("*new*"))
