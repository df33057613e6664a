"""`torchrun -m tfm_cli translate`: the same file as of one process, or a failure of all."""

from pathlib import Path

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tests.distributed import ranks, torchrun
from tests.tiers import representative

pytestmark = pytest.mark.slow


def keep_progress_at_once(rank: int) -> None:
    """Let progress be written however fast a tiny model is."""
    from tfm_cli.translation import resumable_output

    resumable_output.COMMIT_SECONDS = 0.0


@pytest.fixture
def flags(tiny_model: Path) -> list[str]:
    return [
        "translate", "--model", str(tiny_model), "--device", "cpu", "--precision", "fp32",
        "--buffer-size", "8", "--with-score",
    ]  # fmt: skip


def translate(directory: Path, world_size: int, flags: list[str]) -> list[ranks.Ended]:
    """Return what becomes of processes that translate together."""
    return ranks.run(
        directory / "streams", flags, world_size=world_size, prepare=keep_progress_at_once
    )


@representative("world_size", [2, 3])
def test_ranks_write_what_one_process_writes(
    flags: list[str], run_tfm: RunTfm, tiny_corpus: TinyCorpus, tmp_path: Path, world_size: int
) -> None:
    long = ["--max-length", "6", "--input", tiny_corpus.path("test.en")]
    whole = run_tfm([*flags, *long])

    done = translate(tmp_path, world_size, [*flags, *long, "--output", str(tmp_path / "out")])
    piped = translate(tmp_path, world_size, [*flags, *long, "--quiet"])

    err = "".join(each.err for each in done)
    assert ranks.codes(done) == ranks.codes(piped) == [0] * world_size, err
    assert (tmp_path / "out").read_bytes() == whole.out.encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "streams"]
    assert err.count("translated 40 lines in ") == 1
    warnings = [line for line in whole.err.split("\n") if line.startswith("warning: line ")]
    assert warnings
    assert sorted(line for line in err.split("\n") if "warning: line " in line) == sorted(warnings)
    assert [each.out for each in piped] == [whole.out] + [""] * (world_size - 1)


def test_failure_of_one_rank_ends_all_and_another_number_of_ranks_resumes(
    flags: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    good = '{"text": "one two"}\n'
    (tmp_path / "in").write_text(good * 44 + "?\n" + good * 20, encoding="utf-8")  # rank 1's
    job = [*flags, "--json-input", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]

    failed = translate(tmp_path, 2, job)
    (tmp_path / "in").write_text(good * 65, encoding="utf-8")
    mended = translate(tmp_path, 3, job)

    err = "".join(each.err for each in failed)
    assert 0 not in ranks.codes(failed)
    assert err.count(f"{tmp_path / 'in'}:45: is not a JSON object") == 1
    assert "lines are written; the same command resumes after them" in err
    assert ranks.codes(mended) == [0, 0, 0], mended
    assert f"{tmp_path / 'out'}: resuming after line " in mended[0].err
    assert (tmp_path / "out").read_text(encoding="utf-8") == run_tfm(
        [*flags, "--json-input"], good * 65
    ).out


@pytest.mark.torture
def test_refusal_of_rank_0_ends_all(
    flags: list[str], tmp_path: Path, tiny_corpus: TinyCorpus
) -> None:
    """It is torchrun that ends the other process."""
    (tmp_path / "out").mkdir()
    command = [*flags, "-i", tiny_corpus.path("test.en"), "-o", str(tmp_path / "out")]

    with torchrun.start(tmp_path / "job", command) as job:
        code, err = job.ended(), job.words()

    assert code != 0
    assert f"error: {tmp_path / 'out'}: cannot be written: it is a directory" in err
