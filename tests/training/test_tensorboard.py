"""Event files, read back by another reader of protocol buffers than TensorBoard's."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tests.runs import SMALL_RUN, metrics, write_part
from tfm_cli import console
from tfm_cli.errors import ConfigError
from tfm_cli.training.tensorboard import EventFile, check_directory, crc32c, points

TRAIN = {
    "event": "train", "update": 300, "epoch": 2, "loss": 5.5, "ppl": None, "learn_rate": 1e-3,
    "gradient_norm": 1e39, "seconds": 70.5,
}  # fmt: skip
VALID = {
    "event": "valid", "update": 300, "epoch": 2, "bleu": 34.25, "best": True, "scheduled": True,
    "signatures": {"BLEU": "nrefs:1"}, "seconds": 80.0,
}  # fmt: skip
OTHERS = [
    {"event": "skipped", "update": 3, "epoch": 1, "loss": 1.0},
    {"event": "stopped", "update": 3, "epoch": 1, "seconds": 5.0},
]

Point = tuple[str, int, float]
NAMES = {
    "loss", "ppl", "learn_rate", "target_tokens_per_second", "gradient_norm", "bleu", "chrf",
}  # fmt: skip


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field of a protocol buffer."""
    at = 0

    def varint() -> int:
        nonlocal at
        number, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        content = message[at : at + size]
        assert len(content) == size
        at += size
        formats = {1: "<d", 5: "<f"}
        yield key >> 3, struct.unpack(formats[kind], content)[0] if kind in formats else content


def events(path: Path) -> list[dict[int, Any]]:
    """Return the events in a file, whose checksums must be right."""

    def check(data: bytes, checksum: bytes) -> None:
        (masked,) = struct.unpack("<I", checksum)
        rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
        assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc32c(data)

    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        check(content[:8], content[8:12])
        check(content[12 : 12 + size], content[12 + size : 16 + size])
        found.append(dict(fields(content[12 : 12 + size])))
        content = content[16 + size :]
    return found


def read(directory: Path) -> list[Point]:
    """Return tag, step and value of each point in the only event file of a directory."""
    (path,) = directory.glob("*tfevents*")
    header, *others = events(path)
    assert header[3] == b"brain.Event:2"
    found = []
    for event in others:
        for number, value in fields(event[5]):
            assert number == 1
            value = dict(fields(value))
            found.append((value[1].decode(), event[2], value[2]))
    return found


def expected(output: Path) -> list[Point]:
    """Return the points of a run by its `metrics.jsonl`, in single precision."""
    found = []
    for line in metrics(output):
        for name, value in line.items():
            if name in NAMES and value is not None:
                (value,) = struct.unpack("<f", struct.pack("<f", value))
                found.append((f"{line['event']}/{name}", line["update"], value))
    return found


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_checksum_is_that_of_the_standard(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum  # RFC 3720, appendix B.4


def test_line_has_a_point_for_each_finite_number_but_its_position(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "tb", tmp_path / "run", began=1000.0)

    file.rewrite([TRAIN])
    for line in (VALID, *OTHERS):
        file.add(line)

    (path,) = (tmp_path / "tb").iterdir()
    assert [event[1] for event in events(path)[1:]] == [1070.5, 1080.0]  # times
    assert read(tmp_path / "tb") == [
        ("train/loss", 300, 5.5),
        ("train/learn_rate", 300, pytest.approx(1e-3)),
        ("valid/bleu", 300, 34.25),
    ]
    assert list(points({"event": "unknown", "x": 1.0})) == []


def test_large_numbers_of_updates_are_kept(tmp_path: Path) -> None:
    EventFile(tmp_path, tmp_path / "run", began=0).rewrite(
        [VALID | {"update": update} for update in (127, 128, 10**6, 10**12)]
    )

    assert [step for _, step, _ in read(tmp_path)] == [127, 128, 10**6, 10**12]


def test_rewriting_replaces_the_file_of_the_run_and_no_other(tmp_path: Path) -> None:
    EventFile(tmp_path, tmp_path / "run", began=0).rewrite([TRAIN])
    (first,) = tmp_path.glob("*tfevents*")
    others = [tmp_path / "events.out.tfevents.1.host", tmp_path / "events.out.tfevents.2.tfm"]
    for other in others:
        other.write_bytes(b"of another program" * 9)
    EventFile(tmp_path, tmp_path / "other", began=0).rewrite([TRAIN])
    (of_other,) = set(tmp_path.glob("*tfevents*")) - {first, *others}

    EventFile(tmp_path, tmp_path / "run", began=0).rewrite([VALID])

    left = set(tmp_path.glob("*tfevents*"))
    assert first not in left
    assert {*others, of_other} < left
    (new,) = left - {*others, of_other}
    assert new.name > first.name


def test_directory_with_the_curves_of_another_run_is_refused(tmp_path: Path) -> None:
    EventFile(tmp_path / "tb", tmp_path / "run", began=0).rewrite([TRAIN])

    check_directory(tmp_path / "tb", tmp_path / "run")
    check_directory(tmp_path / "tb", tmp_path / "tb" / ".." / "run")
    with pytest.raises(ConfigError, match="tb: holds the curves of another run"):
        check_directory(tmp_path / "tb", tmp_path / "run2")


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/update-00000002", "corpus/tb"])
def test_directory_that_tfm_clears_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="where tfm removes files"):
        check_directory(tmp_path / "run" / place, tmp_path / "run")
    check_directory(tmp_path / "run" / "tensorboard", tmp_path / "run")


@pytest.mark.parametrize(
    "facts",
    [{"update": -1}, {"update": 2**63}, {"update": 1.5}, {"update": None}, {"update": True},
     {"seconds": 1e999}, {"seconds": "5"}, {"seconds": -1e300}, {"seconds": True}],
    ids=str,
)  # fmt: skip
def test_lines_that_tfm_did_not_write_have_no_points(facts: dict[str, Any], tmp_path: Path) -> None:
    EventFile(tmp_path, tmp_path / "run", began=0).rewrite([TRAIN | facts, VALID])

    assert read(tmp_path) == [("valid/bleu", 300, 34.25)]


def test_file_that_is_removed_during_a_run_begins_anew(tmp_path: Path) -> None:
    file = EventFile(tmp_path, tmp_path / "run", began=0)
    file.rewrite([TRAIN])
    (path,) = tmp_path.iterdir()
    path.unlink()

    file.add(VALID)
    file.add(VALID | {"update": 301})

    assert read(tmp_path) == [("valid/bleu", 300, 34.25), ("valid/bleu", 301, 34.25)]


def test_disk_error_is_a_warning_and_ends_the_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.setup()
    file = EventFile(tmp_path / "tb", tmp_path / "run", began=0)
    file.rewrite([TRAIN])
    (path,) = (tmp_path / "tb").iterdir()
    path.unlink()
    path.mkdir()

    file.add(VALID)
    file.add(VALID)

    assert capsys.readouterr().err.count("tb: cannot be written: Is a directory") == 1


@pytest.fixture
def text(tiny_corpus: TinyCorpus, tmp_path: Path) -> list[str]:
    return write_part(tiny_corpus, tmp_path, pairs=20, valid=2)


def command(text: list[str], output: Path, *more: str) -> list[str]:
    flags = ["-o", str(output), "--valid-freq", "3", "--save-freq", "2", "--disp-freq", "2"]
    return ["train", *text, *SMALL_RUN, *flags, "--tensorboard", f"{output}-tb", *more]


def test_no_point_is_there_twice_after_a_resume(
    text: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_tfm(command(text, whole, "--max-updates", "8"))
    first = run_tfm(command(text, parts, "--max-updates", "5"))
    after_first = read(Path(f"{parts}-tb"))

    result = run_tfm(command(text, parts, "--max-updates", "8"))

    assert first.code == result.code == 0, result.err
    assert ("valid/bleu", 5) in {point[:2] for point in after_first}  # only for the end
    assert read(Path(f"{parts}-tb")) == expected(parts)
    steps = [point[:2] for point in read(Path(f"{parts}-tb"))]
    assert sorted(steps) == sorted(set(steps))
    assert steps == [point[:2] for point in read(Path(f"{whole}-tb"))]


def test_curves_of_a_run_that_is_complete_are_written_afterwards(
    text: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run_tfm([*command(text, output, "--max-updates", "4")[:-4], "--max-updates", "4"])
    assert not Path(f"{output}-tb").exists()

    result = run_tfm(command(text, output, "--max-updates", "4"))

    assert result.code == 0, result.err
    assert read(Path(f"{output}-tb")) == expected(output)
    assert json.loads((output / "metrics.jsonl").read_text().split("\n")[0])["event"] == "train"
