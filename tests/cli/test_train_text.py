"""`tfm train` and where its text comes from: files, pairs in one file, what was prepared before."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TFM, RunTfm, TinyCorpus
from tests.runs import SMALL_RUN
from tests.tiers import representative
from tfm_cli.corpus import prepare
from tfm_cli.corpus.store import open_store

SHORT = [*SMALL_RUN, "--max-updates", "2", "-o", "model"]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pairs(tiny_corpus: TinyCorpus) -> list[tuple[str, str]]:
    """The training pairs."""
    both = zip(tiny_corpus.lines("train.en"), tiny_corpus.lines("train.de"), strict=True)
    return list(both)


def weights() -> bytes:
    return Path("model/model.safetensors").read_bytes()


def prepared() -> list[str]:
    """The corpora in the model's folder."""
    return sorted(path.name for path in Path("model/corpus").iterdir() if path.is_dir())


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
@pytest.mark.parametrize("stdin", [False, True])
def test_pairs_in_one_file_are_learned_as_those_in_two(
    kind: str,
    stdin: bool,
    tiny_corpus: TinyCorpus,
    pairs: list[tuple[str, str]],
    run_tfm: RunTfm,
) -> None:
    two = ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]
    assert run_tfm(["train", *two, *SHORT]).code == 0
    expected = weights()
    lines = [
        f"{source}\t{target}" if kind == "tsv" else json.dumps({"source": source, "target": target})
        for source, target in pairs
    ]
    content = "".join(f"{line}\n" for line in lines)
    Path(f"text.{kind}").write_text(content, encoding="utf-8", newline="\n")
    one = ["--pairs", "-", "--pairs-format", kind] if stdin else ["--pairs", f"text.{kind}"]

    result = run_tfm(["train", *one, *SHORT, "--overwrite"], content if stdin else "")

    assert result.code == 0, result.err
    assert "training text: 600 pairs" in result.err
    assert weights() == expected
    assert sorted(path.name for path in Path("model/corpus").iterdir()) == sorted(
        [*prepared(), "files.json"]
    )


def test_run_that_goes_on_prepares_nothing(
    tiny_corpus: TinyCorpus, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]
    run_tfm(["train", *text, *SHORT])
    before = prepared()
    monkeypatch.delattr(prepare, "prepare")

    again = run_tfm(["train", *text, *SHORT, "--max-updates", "3"])
    anew = run_tfm(["train", *text, *SHORT, "--overwrite"])

    assert again.code == anew.code == 0, again.err + anew.err
    assert "resuming after update 2" in again.err
    assert prepared() == before


def test_text_that_is_learned_from_no_more_is_removed_but_not_from_a_cache_of_others(
    tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    text = ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]
    shared = [*text, "--data-cache", "shared"]
    for arguments in (text, shared):
        for limit in ("9", "8"):
            command = ["train", *arguments, *SHORT, "--max-length", limit, "--overwrite"]
            assert run_tfm(command).code == 0

    assert len(prepared()) == 1
    assert len([path for path in Path("shared").iterdir() if path.is_dir()]) == 2


def test_what_is_dropped_is_told_by_reason_and_stands_in_the_card(run_tfm: RunTfm) -> None:
    pairs = ["one\teins", "one\teins", "two\ttwo", "\tx", "one two three\teins", "a\ufffd\tb"]
    Path("text.tsv").write_text("".join(f"{pair}\n" for pair in pairs), encoding="utf-8")
    filters = [
        "--max-ratio", "2.5", "--set", "data.drop_identical=true",
        "--set", "data.drop_duplicates=true", "--set", "data.drop_bad_characters=true",
    ]  # fmt: skip

    result = run_tfm(["train", "--pairs", "text.tsv", *SHORT, *filters])

    assert result.code == 0, result.err
    assert (
        "training text: 1 pair, 2 + 2 tokens, 1 dropped: bad characters, 1 dropped: blank side, "
        "1 dropped: duplicate, 1 dropped: identical sides, 1 dropped: length ratio\n"
    ) in result.err
    card = Path("model/README.md").read_text("utf-8")
    assert "| training text | text.tsv |" in card
    assert "1 bad characters, 1 blank side, 1 duplicate, 1 identical sides, 1 length ratio" in card


def test_validation_text_is_not_filtered(tiny_corpus: TinyCorpus, run_tfm: RunTfm) -> None:
    Path("same").write_text("one\none\none\n", encoding="utf-8")
    text = ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]
    valid = ["--valid-source", "same", "--valid-target", "same"]
    filters = ["--set", "data.drop_identical=true", "--set", "data.drop_duplicates=true"]

    result = run_tfm(["train", *text, *valid, *SHORT, *filters])

    assert result.code == 0, result.err
    assert "validation text: 3 pairs\n" in result.err


def test_line_that_holds_no_pair_is_told_and_nothing_is_left(run_tfm: RunTfm) -> None:
    result = run_tfm(
        ["train", "--pairs", "-", "--pairs-format", "tsv", *SHORT], "one\teins\ntwo zwei\n"
    )

    assert result.code == 3
    message = "error: standard input:2: has 1 column, expected source<TAB>target\n"
    assert result.err.endswith(message)
    assert not Path("model").exists()


def test_standard_input_without_a_format_is_refused_before_any_work(run_tfm: RunTfm) -> None:
    result = run_tfm(["train", "--pairs", "-", *SHORT], "one\teins\n")

    assert result.code == 2
    assert "error: standard input: its name does not show the format of its pairs" in result.err
    assert not Path("model").exists()


def test_pairs_that_are_missing_are_told_before_any_work(run_tfm: RunTfm) -> None:
    result = run_tfm(["train", "--pairs", "none.tsv", *SHORT])

    assert result.code == 3
    assert result.err == "error: none.tsv: there is no such file\n"


def test_weights_stand_in_the_spans(
    tiny_corpus: TinyCorpus, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    before = open_store

    def watched(*arguments: Any, **options: Any) -> Any:
        store = before(*arguments, **options)
        seen.append([(span.first, span.end, span.weight) for span in store.spans])
        return store

    monkeypatch.setattr(prepare, "open_store", watched)
    text = ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]
    text += ["-s", tiny_corpus.path("valid.en"), "-t", tiny_corpus.path("valid.de")]

    result = run_tfm(["train", *text, *SHORT, "--set", "data.weights=0.5,2"])

    assert result.code == 0, result.err
    assert seen == [[(0, 600, 0.5), (600, 640, 2.0)]]


def test_weights_that_leave_nothing_for_an_epoch_are_refused(
    tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    text = ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]

    result = run_tfm(["train", *text, *SHORT, "--set", "data.weights=[1e-3]"])

    assert result.code == 2
    assert result.err.endswith(
        "error: data.weights: an epoch would have 0.6 of 600 pairs, expected at least 1\n"
        "hint: set them higher\n"
    )


@pytest.mark.slow
@representative("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_during_preparation_leaves_nothing(number: int, tmp_path: Path) -> None:
    line = "one two three four five six seven eight nine ten eleven twelve\n"
    for name in ("a", "b"):
        Path(name).write_text(line * 150_000, encoding="utf-8")
    command = [
        *TFM, "train", "-s", "a", "-t", "b", "-o", "model",
        "--data-workers", "2", "--set", "tokenizer.input_sentence_size=100",
        "--set", "tokenizer.byte_fallback=false", "--vocab-size", "40",
    ]  # fmt: skip
    root = Path(prepare.__file__).parents[2]

    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while not list(Path().glob("model/corpus/.*.part/source.ids")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1].decode()

    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    assert not Path("model").exists()


_SAYS_WHEN_IT_LEARNS = """
import sentencepiece, sys
from tfm_cli.cli import main
learn = sentencepiece.SentencePieceTrainer.Train
def says(**options):
    print("it learns", file=sys.stderr, flush=True)
    learn(**options)
sentencepiece.SentencePieceTrainer.Train = says
sys.argv[0] = "tfm"
main()
"""


@pytest.mark.torture
@representative("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_a_tokenizer_is_learned_ends_it_at_once(
    number: int, tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    """Python's own handlers would wait until SentencePiece is done."""
    text = ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]
    command = ["train", *text, *SHORT]
    root = Path(prepare.__file__).parents[2]

    with subprocess.Popen(
        [sys.executable, "-c", _SAYS_WHEN_IT_LEARNS, *command],
        stderr=subprocess.PIPE, env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        stderr_lines = iter(process.stderr.readline, b"it learns\n")
        assert b"" not in stderr_lines
        process.send_signal(number)
        process.wait(timeout=60)
    again = run_tfm(command)

    assert process.returncode == -number  # a shell calls it 128 + number
    assert again.code == 0, again.err
