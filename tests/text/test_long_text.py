"""Lines of any length: bounded memory, no silent loss, time linear in the text."""

import gzip
import os
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TFM, RunTfm
from tests.tiers import representative
from tfm_cli.text.reader import MAX_LINE_BYTES
from tfm_cli.translation.segments import SplitQuality, split

MEGABYTE = 1_000_000
LONG = {
    "without a blank": b"x" * MEGABYTE,
    "without a blank, no ASCII": "ü".encode() * (MEGABYTE // 2),
    "combining marks": b"a" + "\u0301".encode() * (MEGABYTE // 2),
    "blanks": b" " * MEGABYTE,
    "brackets": b"(" * MEGABYTE,
    "language tags": b">>deu<< " * (MEGABYTE // 8),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(
    "command", ["encode", pytest.param("translate", marks=pytest.mark.torture)]
)
def test_r29_line_of_a_megabyte_is_a_line(
    command: str, name: str, tiny_model: Path, run_tfm: RunTfm
) -> None:
    text = b"one\n" + LONG[name] + b"\nfive\n"
    arguments = ["tokenize", "encode"]
    if command == "translate":
        arguments = ["translate", "-gq", "--device", "cpu", "--workers", "1", "--max-length", "64"]
        arguments += ["--on-long", "cut"]
    began = time.monotonic()

    result = run_tfm([*arguments, "-m", str(tiny_model)], text)

    first, long, last = result.out.split("\n")[:-1]
    assert result.code == 0
    assert [first, last] == (["▁one", "▁five"] if command == "encode" else ["eins", "fünf"])
    assert time.monotonic() - began < 30
    assert len(long) < 8 * MEGABYTE


def peak_mib(arguments: list[str], parts: Iterable[bytes]) -> tuple[float, bytes, bytes]:
    """Return the peak memory of a command, its output and its messages."""
    process = subprocess.Popen(
        [*TFM, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    for part in parts:
        process.stdin.write(part)
    process.stdin.close()
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, err
    process.stdout.close()
    process.stderr.close()
    return usage.ru_maxrss / 1024, out, err


def parts(what: str) -> Iterable[bytes]:
    yield b"one\n" if what == "line" else b""
    if what == "line":
        for _ in range(200):
            yield b"x" * MEGABYTE
        yield b"\nfive\n"
    else:
        member = gzip.compress(b"\0" * (1 << 26))  # 65 kB; sixteen of them are one stream
        yield gzip.compress(b"one\n")
        for _ in range(16):
            yield member
        yield gzip.compress(b"\nfive\n")


@pytest.mark.slow
@representative("what", ["line", "bomb"])
def test_r29_endless_line_takes_the_memory_of_a_line(what: str, tiny_model: Path) -> None:
    encode = ["tokenize", "encode", "-m", str(tiny_model)]
    base, _, _ = peak_mib(encode, [b"one\n"])

    peak, out, err = peak_mib(encode, parts(what))

    assert out.split(b"\n")[0] == "▁one".encode()
    assert out.endswith("\n▁five\n".encode())
    assert out.count(b"\n") == 3
    message = f"lines cut at {MAX_LINE_BYTES} bytes: 1 (first: line 2)"
    assert message.encode() in err
    assert peak < base + 60


@pytest.mark.slow
@representative("zeros", [True, False])
def test_r29_endless_line_of_a_corpus_is_dropped_and_counted(
    zeros: bool, tmp_path: Path, run_tfm: RunTfm
) -> None:
    body = (b"\0" if zeros else b"x ") * (1 << 24)
    (tmp_path / "s").write_bytes(gzip.compress(b"one\n" * 20_000 + body + b"\nfive\n"))
    (tmp_path / "t").write_bytes(b"eins\n" * 20_002)
    shape = ["--vocab-size", "30", "--set", "tokenizer.byte_fallback=false"]
    shape += ["--set", "model.width=16", "--set", "model.heads=2"]

    result = run_tfm([
        "train", "-s", str(tmp_path / "s"), "-t", str(tmp_path / "t"), "-o", str(tmp_path / "m"),
        "--max-updates", "1", "--device", "cpu", *shape,
    ])  # fmt: skip

    assert result.code == 0, result.err
    assert f"lines cut at {MAX_LINE_BYTES} bytes: 1 (first: line 20001)" in result.err
    reason = "blank side" if zeros else "too long"
    assert re.search(rf"training text: 20001 pairs, .* tokens, 1 dropped: {reason}\n", result.err)


@settings(deadline=None)
@given(st.lists(st.sampled_from(SplitQuality), max_size=60), st.integers(2, 9), st.integers(0, 1))
def test_r30_parts_of_a_long_line_are_all_of_it(
    qualities: list[SplitQuality], longest: int, tag: int
) -> None:
    ids = list(range(len(qualities)))
    tag = min(tag, len(ids))

    result = split(ids, qualities, longest, tag=tag)

    assert all(part[:tag] == ids[:tag] for part in result)
    assert [i for part in result for i in part[tag:]] == ids[tag:]
    assert all(len(part) <= longest for part in result)
    if SplitQuality.CHARACTER not in qualities:
        room = longest - tag
        assert len(result) <= 1 + 2 * len(ids) // room  # all but the last are at least half full


def test_r30_long_sentence_is_split_and_told(tiny_model: Path, run_tfm: RunTfm) -> None:
    text = f"one\n{'two ' * 1000}\nfive\n"

    result = run_tfm(
        ["translate", "-gq", "--device", "cpu", "--workers", "1", "-m", str(tiny_model)], text
    )

    first, long, last = result.out.split("\n")[:-1]
    assert (first, last) == ("eins", "fünf")
    assert result.err == "warning: line 2 has 1000 tokens, more than 256: split\n"
    assert 4 <= len(long.split()) <= 1000 * 3 + 4 * 50  # SearchConfig.max_length_factor, a part


@pytest.mark.slow
def test_r30_time_grows_with_the_number_of_pieces(tiny_model: Path, run_tfm: RunTfm) -> None:
    command = ["translate", "-gq", "--device", "cpu", "--workers", "1", "-m", str(tiny_model)]
    run_tfm(command, "one\n")
    seconds = {}

    for words in (1000, 10_000):
        began = time.process_time()
        assert run_tfm(command, "two " * words + "\n").code == 0
        seconds[words] = time.process_time() - began

    assert seconds[10_000] < 20 * seconds[1000]
