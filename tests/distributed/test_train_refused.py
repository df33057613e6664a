"""All ranks fail if one of them differs or cannot do its part."""

import os
from pathlib import Path

import pytest

from tests.conftest import TinyCorpus
from tests.distributed import ranks
from tests.distributed.ranks_run import command
from tests.runs import metrics, write_part
from tests.tiers import representative


@pytest.mark.slow
def test_other_settings_are_refused_by_name(text: list[str], tmp_path: Path) -> None:
    def its_own(rank: int) -> list[str]:
        more = ["--seed", "2", "--cpu-threads", "2"] if rank else ["--disp-freq", "9"]
        return command(text, tmp_path / "model", *more)

    done = ranks.run(tmp_path / "s", its_own)

    assert ranks.codes(done) == [2, 2]
    assert ranks.errors(done)[0].endswith("error: the processes differ in settings, code or text")
    stderr = done[0].err + done[1].err
    assert "  rank 1: training.seed is 2, on rank 0 1\n" in stderr
    assert "  rank 1: training.disp_freq is 1, on rank 0 9\n" in stderr
    assert "cpu_threads" not in stderr
    assert "hint: give all of them the same settings and the same text" in stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_text_that_differs_in_a_byte_is_refused_by_name(
    text: list[str], tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = write_part(tiny_corpus, tmp_path / "other", pairs=55)
    source = tmp_path / "other" / "train.en"
    source.write_bytes(source.read_bytes().replace(b"one", b"ons", 1))

    done = ranks.run(
        tmp_path / "s", lambda rank: command(other if rank else text, tmp_path / "model")
    )

    assert ranks.codes(done) == [2, 2]
    stderr = done[0].err + done[1].err
    assert "  rank 1: training text is " in stderr
    assert "validation text" not in stderr.partition("error: ")[2]
    left = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert left == [".tfm-run.json", "corpus"]  # the marker of a run that began


@pytest.mark.torture
def test_file_that_one_lacks_ends_all(text: list[str], tmp_path: Path) -> None:
    missing = [str(tmp_path / "none.en") if each == text[1] else each for each in text]

    done = ranks.run(
        tmp_path / "s", lambda rank: command(missing if rank else text, tmp_path / "model")
    )

    assert ranks.codes(done) == [3, 3]
    (error,) = ranks.errors(done)
    assert error.startswith(f"error: rank 1 of 2: {tmp_path / 'none.en'}: ")


@pytest.mark.torture
def test_another_machine_needs_no_more_than_the_text(text: list[str], tmp_path: Path) -> None:
    def first_of_its_machine(rank: int) -> None:
        os.environ["LOCAL_RANK"] = "0"

    def run(updates: int) -> list[ranks.Ended]:
        return ranks.run(
            tmp_path / "s",
            lambda rank: command(text, tmp_path / f"of {rank}", updates=updates),
            prepare=first_of_its_machine,
        )

    begun, gone_on = run(3), run(6)

    assert ranks.codes(begun) == ranks.codes(gone_on) == [0, 0], gone_on
    assert "resuming after update 3 of " in gone_on[0].err
    assert [path.name for path in (tmp_path / "of 1").iterdir()] == ["corpus"]


@pytest.mark.torture
def test_standard_input_is_refused(text: list[str], tmp_path: Path) -> None:
    done = ranks.run(tmp_path / "s", ["train", "--pairs", "-", "-o", str(tmp_path / "model")])

    assert ranks.codes(done) == [2, 2]
    (error,) = ranks.errors(done)
    assert error.endswith("`--pairs -`: 2 processes cannot all read it")
    assert "hint: name a file that each of them can read" in done[0].err + done[1].err


@pytest.mark.slow
def test_refusal_of_rank_0_ends_all(text: list[str], tmp_path: Path) -> None:
    assert ranks.codes(ranks.run(tmp_path / "s", command(text, tmp_path / "model", updates=2))) == [
        0,
        0,
    ]

    refused = ranks.run(tmp_path / "s", command(text, tmp_path / "model", "--dropout", "0.3"))
    again = ranks.run(
        tmp_path / "s", command(text, tmp_path / "model", "--dropout", "0.3", "--overwrite")
    )

    assert ranks.codes(refused) == [2, 2]
    (error,) = ranks.errors(refused)
    assert "holds a run with other settings; 1 change" in error
    assert ranks.codes(again) == [0, 0]
    assert sum(line["event"] == "train" for line in metrics(tmp_path / "model")) == 12


@pytest.mark.slow
@representative("strategy", ["ddp", "fsdp"])
def test_weights_that_compute_no_numbers_in_a_validation_end_all_by_divergence(
    strategy: str, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    text = write_part(tiny_corpus, tmp_path, pairs=55, valid=6)
    more = ["--lr", "1e10", "--lr-warmup", "1", "--valid-freq", "2", "--valid-metrics", "bleu"]
    more += ["--set", "training.ema_decay=0", "--set", f"parallel.strategy={strategy}"]

    done = ranks.run(tmp_path / "s", command(text, tmp_path / "model", *more))

    assert ranks.codes(done) == [6, 6]
    (message,) = ranks.errors(done)
    assert "lower `--learn-rate`" in done[0].err + done[1].err
    assert "the validation after update 2: " in message
