"""Text that might steer a terminal: spelled out where one shows it, exact everywhere else."""

import html
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TFM, TINY_SHAPE, Result, RunTfm
from tests.forked import PATIENCE
from tests.tiers import representative
from tfm_cli.console import one_line, visible, visible_message

# Set the clipboard, a link, clear the screen, the same in 8 bits, write backwards, a new title.
HOSTILE = "\x1b]52;c;eA==\x07\x1b]8;;http://x\x1b\\\x1b[2J\x9b2J\u202etxt\x1b]0;x\x07\x7f"
SPELLED = visible(HOSTILE)
STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def on_terminal(arguments: list[str], typed: bytes = b"") -> str:
    """All that a terminal gets to show of a command that writes both streams to it."""
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        [*TFM, *arguments],
        stdin=subprocess.PIPE, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    assert process.stdin is not None
    process.stdin.write(typed)
    process.stdin.close()
    shown = b""
    try:
        while chunk := os.read(keyboard, 1 << 16):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(keyboard)
    process.wait(timeout=PATIENCE)
    return shown.decode().replace("\r\n", "\n")


def test_r37_what_is_shown_steers_nothing() -> None:
    everything = "".join(map(chr, range(0x3000)))

    for shown in (visible(everything), visible_message(everything), one_line(everything)):
        assert not STEERING.search(shown)
        assert not {"\u202e", "\x9b", "\x1b"} & set(shown)
    assert "\n" not in one_line(everything)
    assert visible("a\tb\nc é 猫") == "a\tb\nc é 猫"


@pytest.mark.parametrize("text", ["error: x", "a\nerror: disk full", "a\n\nhint: b", "a\n b"])
def test_r37_name_cannot_begin_a_line_of_a_message(text: str) -> None:
    assert visible_message(text) == text.replace("\n", "\\u000a")
    lines = visible_message(f"2 problems\n  {text}\n  more").split("\n  ")
    assert lines[1] == text.replace("\n", "\\u000a")


@pytest.mark.slow
@representative("command", ["translate", "decode"])
def test_r37_translations_on_a_terminal_are_spelled_and_through_a_pipe_exact(
    command: str, tmp_path: Path, tiny_model: Path
) -> None:
    text = f"one {HOSTILE} two\n".encode()
    # What stands in the columns of the input, or in pieces, comes out as it was.
    arguments = ["translate", "-m", str(tiny_model), "-gq", "--device", "cpu", "--tsv"]
    if command == "decode":
        arguments = ["tokenize", "decode", "-m", str(tiny_model)]

    shown = on_terminal(arguments, text)
    piped = subprocess.run(
        [*TFM, *arguments], input=text, capture_output=True, check=True
    ).stdout.decode()

    assert not STEERING.search(shown)
    assert "\\u001b]52;c;eA==\\u0007" in shown
    assert "\x1b]52;c;eA==\x07" in piped
    assert visible(piped) == shown


def hostile(folder: Path) -> Path:
    """A folder whose name would steer a terminal, and forge a line of a log."""
    place = folder / (HOSTILE.replace("/", "") + "\nerror: forged")
    place.mkdir()
    return place


def clean(result: Result) -> bool:
    text = result.out + result.err
    return not STEERING.search(text) and "\nerror: forged" not in text


QUOTED = [
    "translate -m {}", "translate -i {}/none", "translate -o {}", "translate --format {}",
    "translate -i {}/x -o {}/x", "translate --alignment {}", "translate --precision {}",
    "translate -m {model} --shortlist-file {} --device cpu", "translate --no-{}", "{}",
    "translate -m {model} --device {}", "tokenize encode -m {} {}/text",
    "tokenize encode -m {model} -i {}/none", "tokenize decode -m {model} {}/text -o {}",
    "tokenize train -i {}/none --model-prefix x", "tokenize train --model-prefix {}/",
    "evaluate {}/none", "evaluate {}/text -i {}/two", "evaluate {}/text -m {}",
    "evaluate {}/text -i {}/text --tokenize {}", "check -s {}/none -t {}/text",
    "check -s {}/bad -t {}/two", "check -s {}/bad -t {}/two -f json", "check --config {}",
    "check --config {}/toml", "check -s {}/text -t {}/text --tokenizer {}",
    "train -s {}/none -t {}/text", "train -s {}/bad -t {}/text -o {}/m", "train --preset {}",
    "train --config {}/toml", "train --set {}=1", "train --set model.norm={}",
    "train --pairs {}/text", "train --pretrained-model {}", "shortlist -m {} -s a -t b",
    "shortlist -m {model} -s {}/none -t {}/none -o {}/t --device cpu", "import {} -o {}/m",
    "export {} --to hf -o {}/m", "evaluate {}/text -i {}/text {}/two",
    "evaluate {}/text -i {}/same {}/copy --paired-bs --paired-bs-n 2 -f text",
    "evaluate {}/text -i {}/same {}/copy -f json",
]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(each, marks=pytest.mark.torture if i % 6 else ())
        for i, each in enumerate(QUOTED)
    ],
)
def test_r37_whatever_is_quoted_is_spelled_out(
    arguments: str, tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    place = hostile(tmp_path)
    for name, raw in (
        ("text", b"one\n"), ("two", b"one\ntwo\n"), ("bad", b"\xff\n"), ("same", b"one\n"),
        ("copy", b"two\n"), ("toml", b'[data]\n"a\\u001b[2J" = 1\nsource = 5\n'),
    ):  # fmt: skip
        (place / name).write_bytes(raw)
    values = {"model": str(tiny_model)}

    result = run_tfm([
        word.replace("{}", str(place)).format(**values) for word in arguments.split()
    ], "one\n")  # fmt: skip

    assert result.code in range(6), result.err
    assert re.search(r"\\(u00|x)1b", result.out + result.err)
    assert clean(result), result.out + result.err


def test_r37_files_that_people_read_are_clean_too(tmp_path: Path, run_tfm: RunTfm) -> None:
    place = hostile(tmp_path)
    (place / "s").write_bytes(b"one\n" * 4)

    files = ["-s", str(place / "s"), "-t", str(place / "s"), "-o", str(place / "m")]
    trained = run_tfm(["train", *files, *TINY_SHAPE, "--max-updates", "1", "--device", "cpu"])
    dumped = run_tfm(["train", *files, "--dump-config"])
    (tmp_path / "run.toml").write_text(dumped.out, encoding="utf-8")
    again = run_tfm(["train", "--config", str(tmp_path / "run.toml"), "--dump-config"])

    assert trained.code == 0, trained.err
    assert clean(trained)
    assert clean(dumped)
    assert again.out == dumped.out  # what is spelled in TOML is the same text
    card = (place / "m" / "README.md").read_text(encoding="utf-8")
    shown = html.unescape(card)  # what a reader of the Markdown sees
    assert SPELLED.replace("/", "") in shown
    assert not STEERING.search(card)
    assert "\nerror: forged" not in card


def test_r37_a_bug_s_traceback_is_clean_too(
    run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise AssertionError(HOSTILE)

    monkeypatch.setattr("tfm_cli.cli.translate.check_input", broken)

    result = run_tfm(["translate"])

    assert result.code == 70
    assert SPELLED in result.err
    assert clean(result)
