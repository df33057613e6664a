"""Training text that is not UTF-8: refused, replaced or left out with its pair, as is asked for."""

from pathlib import Path

import pytest

from tests.conftest import TINY_SHAPE, Result, RunTfm
from tfm_cli.corpus.parallel_text import Block, block_pairs, read_corpus
from tfm_cli.corpus.sources import aligned_files

BROKEN = (b"t\xffwo", b"two \xc0\xaf", b"z\xed\xa0\x80wei", b"vier \xe2\x82")
SOURCES = [b"one", b"two", BROKEN[0], b"three", BROKEN[1], b"four", b"five", b"six"]
TARGETS = [b"eins", BROKEN[2], b"zwei", b"drei", BROKEN[3], b"vier", "fünf".encode(), b"sechs"]
KEPT = [0, 3, 5, 6, 7]  # neither side is broken


def write(folder: Path) -> tuple[str, str]:
    for name, lines in (("s", SOURCES), ("t", TARGETS)):
        (folder / name).write_bytes(b"".join(line + b"\n" for line in lines))
    return str(folder / "s"), str(folder / "t")


def train(run_tfm: RunTfm, folder: Path, *flags: str, text: tuple[str, ...] = ()) -> Result:
    files = text or ("-s", str(folder / "s"), "-t", str(folder / "t"))
    output = ["-o", str(folder / "model"), "--max-updates", "1", "--device", "cpu"]
    return run_tfm(["train", *files, *TINY_SHAPE, *output, *flags])


@pytest.mark.parametrize("bad_utf8", ["replace", "drop-pair"])
def test_r21_pairs_are_those_of_python_s_own_decoder(bad_utf8: str, tmp_path: Path) -> None:
    files = aligned_files(*([path] for path in write(tmp_path)))

    actual = list(read_corpus(files, bad_utf8=bad_utf8, warn=False))

    every = [
        (source.decode("utf-8", "replace"), target.decode("utf-8", "replace"))
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    assert actual == (every if bad_utf8 == "replace" else [every[index] for index in KEPT])


@pytest.mark.parametrize("held", ["tsv", "jsonl"])
def test_r21_line_that_is_left_out_need_hold_no_pair(held: str) -> None:
    good = b"one\teins\n" if held == "tsv" else b'{"source": "one", "target": "eins"}\n'
    block = Block(0, held, ("text",), 0, (False,), (good + b"\xff\n" + good,))  # type: ignore[arg-type] # one of them

    sources, targets, repairs, num_left_out, numbers = block_pairs(block, bad_utf8="drop-pair")

    assert (sources, targets, num_left_out) == (["one", "one"], ["eins", "eins"], 1)
    assert numbers == [1, 3]
    assert repairs[0].notes(99) == [
        "lines with invalid UTF-8, left out together with their pair: 1 (first: line 2)"
    ]


def test_r21_training_refuses_it_and_leaves_nothing(run_tfm: RunTfm, tmp_path: Path) -> None:
    source, _ = write(tmp_path)

    result = train(run_tfm, tmp_path)

    assert result.code == 3
    assert f"error: {source}:3: byte 2: 0xff is not UTF-8\n" in result.err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_r21_training_leaves_out_the_pair_and_counts_it(
    workers: str, run_tfm: RunTfm, tmp_path: Path
) -> None:
    source, target = write(tmp_path)

    result = train(run_tfm, tmp_path, "--bad-utf8", "drop-pair", "--data-workers", workers)

    assert result.code == 0, result.err
    for path, count, first in ((source, 2, 3), (target, 2, 2)):
        message = f"left out together with their pair: {count} (first: line {first})"
        assert f"warning: {path}: lines with invalid UTF-8, {message}\n" in result.err
    assert "training text: 5 pairs, 10 + 10 tokens, 3 dropped: invalid UTF-8\n" in result.err
    assert "(left out: 3 invalid UTF-8)" in (tmp_path / "model" / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_r21_training_replaces_it_and_counts_it(run_tfm: RunTfm, tmp_path: Path) -> None:
    source, _ = write(tmp_path)

    result = train(run_tfm, tmp_path, "--bad-utf8", "replace")

    assert result.code == 0, result.err
    message = "lines with invalid UTF-8, replaced by U+FFFD: 2 (first: line 3)"
    assert f"warning: {source}: {message}\n" in result.err
    assert "training text: 8 pairs, " in result.err


@pytest.mark.slow
def test_r21_another_choice_is_another_corpus(run_tfm: RunTfm, tmp_path: Path) -> None:
    write(tmp_path)
    cache = ["--data-cache", str(tmp_path / "cache"), "--overwrite"]

    for choice, pairs in (("replace", 8), ("drop-pair", 5), ("replace", 8)):
        result = train(run_tfm, tmp_path, *cache, "--bad-utf8", choice)

        assert f"training text: {pairs} pairs, " in result.err
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


def test_r21_a_run_does_not_go_on_with_another_choice(run_tfm: RunTfm, tmp_path: Path) -> None:
    write(tmp_path)
    train(run_tfm, tmp_path, "--bad-utf8", "drop-pair")

    result = train(run_tfm, tmp_path, "--bad-utf8", "replace")

    assert result.code == 2
    assert "data.bad_utf8: `drop-pair` → `replace`" in result.err


def test_r21_choice_that_there_is_not_is_refused(run_tfm: RunTfm, tmp_path: Path) -> None:
    result = train(run_tfm, tmp_path, "--bad-utf8", "ignore")

    assert result.code == 2
    assert "must be one of `refuse`, `replace`, `drop-pair`, got `ignore`" in result.err


@pytest.mark.slow
def test_r21_validation_text_is_refused_all_the_same(run_tfm: RunTfm, tmp_path: Path) -> None:
    source, target = write(tmp_path)
    text = ("-s", source, "-t", target, "-vs", source, "-vt", target)

    result = train(run_tfm, tmp_path, "--bad-utf8", "replace", text=text)

    assert result.code == 3
    assert f"error: {source}:3: byte 2: 0xff is not UTF-8" in result.err


@pytest.mark.parametrize("bad_utf8", ["replace", "drop-pair"])
def test_r32_binary_text_is_refused_with_every_setting(
    bad_utf8: str, run_tfm: RunTfm, tmp_path: Path
) -> None:
    write(tmp_path)
    (tmp_path / "s").write_bytes(bytes(range(1, 256)) * 9)

    result = train(run_tfm, tmp_path, "--bad-utf8", bad_utf8)

    assert result.code == 3
    expected = (
        f"error: {tmp_path / 's'}: looks binary (bytes that are not UTF-8), expected UTF-8 text"
    )
    assert expected in result.err


@pytest.mark.slow
def test_r21_setting_stands_in_a_file_as_well(run_tfm: RunTfm, tmp_path: Path) -> None:
    result = run_tfm(["train", "--bad-utf8", "drop-pair", "--dump-config"])
    (tmp_path / "run.toml").write_text(result.out, encoding="utf-8")

    again = run_tfm(["train", "--config", str(tmp_path / "run.toml"), "--dump-config"])

    assert '\nbad_utf8 = "drop-pair"\n' in again.out
    assert again.out == result.out
