"""`tfm` as a process among others: pipes, terminals, signals and locales."""

import os
import pty
import random
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TFM
from tests.tiers import representative

PATIENCE = 120  # seconds, for a machine that has much else to do


@pytest.fixture
def translate(tiny_model: Path) -> list[str]:
    flags = ["--device", "cpu", "--precision", "fp32", "--workers", "1"]
    return [*TFM, "translate", "--model", str(tiny_model), *flags]


@pytest.fixture
def encode(tiny_model: Path) -> list[str]:
    """A command that streams like the others and needs no torch."""
    return [*TFM, "tokenize", "encode", "--model", str(tiny_model / "tokenizer.model")]


def run_in_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def read_until(descriptor: int, expected: bytes) -> bytes:
    """What comes, up to what is waited for."""
    received, ends = b"", time.monotonic() + PATIENCE
    while expected not in received and time.monotonic() < ends:
        if select.select([descriptor], [], [], 0.1)[0]:
            received += os.read(descriptor, 1 << 16)
    return received


def hostile_lines(count: int) -> list[bytes]:
    chance = random.Random(5)
    ingredients = [
        b"one", b" ", b"five", b"\r", b"\0", b"\v\f", b"\x1c\x85", b"\xff\xfe", b"\xed\xa0\x80",
        b"\xef\xbb\xbf", "\u2028\u2029\x85".encode(), "\u202e😀é".encode(), b"\x1b]0;x\x07",
    ]  # fmt: skip
    return [b"".join(chance.choices(ingredients, k=chance.randint(0, 6))) for _ in range(count)]


# Without torch it takes a tenth of the time; the reader and the writer of lines are the same.
@pytest.mark.parametrize("command", ["encode", pytest.param("translate", marks=pytest.mark.slow)])
def test_hostile_bytes_keep_their_lines_in_any_locale(
    command: str, translate: list[str], encode: list[str], tmp_path: Path
) -> None:
    lines = [b"five", *hostile_lines(300), b"one " * 3000, b"five"]
    source = os.fsencode(tmp_path) + b"/not \xff utf-8 \xc3\xbc"
    Path(os.fsdecode(source)).write_bytes(b"\n".join(lines))
    poor = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }

    done = subprocess.run(
        [*(encode if command == "encode" else [*translate, "--beam", "1"]), "--input", source],
        env=os.environ | poor, capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip

    assert done.returncode == 0
    assert done.stdout.count(b"\n") == len(lines)
    first = "fünf\n" if command == "translate" else "▁five\n"
    assert done.stdout.startswith(first.encode())
    assert done.stdout.decode("utf-8").endswith(f"\n{first}")
    assert b"invalid UTF-8, replaced by U+FFFD" in done.stderr
    is_reported = b"line 302 has 3000 tokens, more than 256: split" in done.stderr
    assert is_reported == (command == "translate")


@pytest.mark.slow
def test_reader_that_has_enough_ends_it_without_a_word(translate: list[str]) -> None:
    done = run_in_shell(
        f"yes one | {shlex.join(translate)} --quiet | head -n 2; echo ${{PIPESTATUS[1]}}"
    )

    assert done.stdout == "eins\neins\n0\n"
    assert done.stderr == ""


@pytest.mark.slow
def test_line_typed_on_a_terminal_is_answered_before_the_next(translate: list[str]) -> None:
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(translate, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)

    hint = read_until(keyboard, b"ends\r\n")
    os.write(keyboard, b"one two\n")
    first = read_until(keyboard, b"eins zwei\r\n")
    os.write(keyboard, b"five\n")
    second = read_until(keyboard, "fünf\r\n".encode())
    os.write(keyboard, b"\x04")  # Ctrl-D
    closing = read_until(keyboard, b"tokens/s\r\n")

    assert hint == b"type a line and press Enter; Ctrl-D ends\r\n"
    assert first == b"one two\r\neins zwei\r\n"
    assert second == "five\r\nfünf\r\n".encode()
    assert closing.startswith(b"translated 2 lines in ")
    assert process.wait(PATIENCE) == 0
    os.close(keyboard)


@pytest.mark.slow
def test_line_sent_through_a_pipe_is_answered_and_an_interrupt_ends_it(
    translate: list[str],
) -> None:
    process = subprocess.Popen(
        translate, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None

    for sent, answer in ((b"one\n", b"eins\n"), (b"\n", b"\n"), (b"two three\n", b"zwei drei\n")):
        process.stdin.write(sent)
        process.stdin.flush()
        assert process.stdout.readline() == answer
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)

    assert (process.returncode, out, err) == (130, b"", b"interrupted\n")


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, b"interrupted\n"), (signal.SIGTERM, 143, b"terminated\n"),
        (signal.SIGHUP, 129, b"hung up\n"),
    ],
)  # fmt: skip
def test_signal_leaves_the_old_output_and_nothing_half_written(
    encode: list[str], tmp_path: Path, number: int, code: int, word: bytes
) -> None:
    (tmp_path / "out").write_bytes(b"old\n")
    process = subprocess.Popen(
        [*encode, "--output", str(tmp_path / "out")],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    ends = time.monotonic() + PATIENCE
    while not list(tmp_path.glob(".*.part")) and time.monotonic() < ends:
        time.sleep(0.01)

    process.send_signal(number)

    assert process.communicate(timeout=PATIENCE)[1] == word
    assert process.returncode == code
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old\n"


@pytest.mark.slow
@representative(
    ("redirection", "code", "message"),
    [
        ("<&-", 3, "error: standard input: cannot be read: it is closed\n"),
        ("</dev/null >&-", 5, "error: standard output: cannot be written: it is closed\n"),
        ("<<<one >/dev/full", 5,
         "error: standard output: cannot be written: No space left on device\n"),
        ("<<<one 2>&-", 0, ""),
    ],
)  # fmt: skip
def test_stream_that_is_not_there_is_told(
    encode: list[str], redirection: str, code: int, message: str
) -> None:
    done = run_in_shell(f"{shlex.join(encode)} {redirection}")

    assert (done.returncode, done.stderr) == (code, message)


def test_help_that_cannot_be_written_is_told() -> None:
    done = run_in_shell(f"{shlex.join(TFM)} --help > /dev/full")

    assert (done.returncode, done.stderr) == (5, "error: cannot write: No space left on device\n")


def test_torch_is_not_imported_for_what_needs_none(tmp_path: Path) -> None:
    needs_none = [
        [["--help"], 0], [["--version"], 0], [["no-such-command"], 2], [["translate", "--help"], 0],
        [["train", "--help"], 0], [["evaluate", "--help"], 0], [["tokenize", "--help"], 0],
        [["translate", "--beam", "x"], 2], [["translate", "--beam", "0"], 2],
        [["translate", "--greedy", "--beam", "2"], 2], [["translate", "--input", "none"], 3],
        [["translate", "--model", "none"], 4], [["translate", "--output", "/"], 5],
        [["train", "--set", "model.widht=8"], 2],
    ]  # fmt: skip
    script = f"""if True:
        import sys
        from typer.testing import CliRunner
        from tfm_cli.cli import app
        for arguments, code in {needs_none}:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == code, (arguments, result.output)
            assert "torch" not in sys.modules, arguments
        """

    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)

    assert done.returncode == 0


NO_STDIN = (3, "error: standard input: cannot be read: it is closed\n")
NO_STDOUT = (5, "error: standard output: cannot be written: it is closed\n")


@pytest.mark.slow
@representative(
    ("arguments", "redirection", "expected"),
    [
        ("evaluate text", "<&-", NO_STDIN),
        ("evaluate text -i text", ">&-", NO_STDOUT),
        ("check -q -s text -t text", ">&-", NO_STDOUT),
        ("train --dump-config", ">&-", NO_STDOUT),
    ],
)
def test_closed_stream_is_told_by_each_command(
    arguments: str, redirection: str, expected: tuple[int, str], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("one two\n", encoding="utf-8")
    command = f"{shlex.join([sys.executable, '-m', 'tfm_cli'])} {arguments} {redirection}"

    done = run_in_shell(f"cd {shlex.quote(str(tmp_path))} && {command}")

    assert (done.returncode, done.stderr) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_that_comes_while_python_exits_ends_it_without_a_traceback(number: int) -> None:
    code = (
        "import atexit, os, sys\n"
        f"atexit.register(os.kill, os.getpid(), {int(number)})\n"
        "from tfm_cli.cli import main\n"
        "sys.argv = ['tfm', '--version']\n"
        "main()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=PATIENCE, check=False
    )

    assert (done.returncode, done.stderr) == (-number, b"")
