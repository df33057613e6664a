"""R16: the same run gives the same bytes. R17: a line has one translation, wherever it stands."""

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import TFM, TinyCorpus, invoke
from tests.runs import SMALL_RUN, left_behind, write_part
from tests.tiers import representative
from tests.translation.native_translator import needs_native
from tests.translation.torch_translator import torch_translator
from tfm_cli import device
from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batch import make_batch
from tfm_cli.files import faults as failpoint
from tfm_cli.model.precision import set_deterministic
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.translation.assembly import Candidate
from tfm_cli.translation.translator import Translator, TranslatorOptions

CPU = torch.device("cpu")
NUM_LINES = 320


# --- R16: training ------------------------------------------------------------------------------


@pytest.fixture
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@representative("flags", [["--cpu-threads", "2"], ["--deterministic"]], ids=str)
def test_r16_the_same_run_gives_the_same_bytes_in_another_process(
    flags: list[str], tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    text = write_part(tiny_corpus, tmp_path, pairs=55)
    for name in ("one", "two"):
        command = [
            "train", *text, *SMALL_RUN, "-o", str(tmp_path / name), "--max-updates", "12", *flags
        ]  # fmt: skip
        environment = os.environ | {"PYTHONHASHSEED": name.replace("one", "1").replace("two", "2")}
        subprocess.run(
            [*TFM, *command],
            env=environment, check=True, capture_output=True,
        )  # fmt: skip

    one, two = tmp_path / "one", tmp_path / "two"
    assert left_behind(one) == left_behind(two)
    for file in ("model.safetensors", "tokenizer.model"):
        hashes = [hashlib.sha256((name / file).read_bytes()).hexdigest() for name in (one, two)]
        assert hashes[0] == hashes[1]


@pytest.mark.usefixtures("_restored")
def test_r16_determinism_is_asked_for_before_a_gpu_is(
    tiny_corpus: TinyCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, str | None]] = []

    def no_gpu() -> int:
        deterministic = torch.are_deterministic_algorithms_enabled()
        asked.append((deterministic, os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return 0

    monkeypatch.setattr(device, "num_gpus", no_gpu)
    text = write_part(tiny_corpus, tmp_path, pairs=20, valid=0)
    shape = [*SMALL_RUN, "-o", str(tmp_path / "m"), "--max-updates", "1", "--device", "auto"]

    result = invoke(["train", *text, *shape, "--deterministic"])

    assert result.code == 0, result.err
    assert set(asked) == {(True, ":4096:8")}


@pytest.mark.usefixtures("_restored")
def test_r16_choice_of_the_user_for_cublas_is_kept_and_a_later_run_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")

    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert torch.are_deterministic_algorithms_enabled()
    set_deterministic(False)

    assert not torch.are_deterministic_algorithms_enabled()


# --- R17: translation ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


@pytest.fixture(scope="module")
def lines(tiny_corpus: TinyCorpus) -> list[str]:
    """Of any length, with a blank one and a double here and there."""
    words = sorted(set(" ".join(tiny_corpus.lines("train.en")).split()))
    chance = random.Random(17)
    drawn = [" ".join(chance.choices(words, k=chance.randint(0, 12))) for _ in range(NUM_LINES)]
    return [*drawn[:-2], drawn[5], drawn[5]]


def translated(
    trained: TrainedModel, lines: list[str], *, window: int, threads: int = 1, beam_size: int = 4
) -> list[Candidate]:
    """In batches of as many lines as a window has."""
    search = SearchConfig(beam_size=beam_size, buffer_size=window, max_tokens=1_000_000)
    translator = torch_translator(
        trained.transformer, trained.tokenizers, search=search, device=CPU
    )
    torch.set_num_threads(threads)
    return [found.candidates[0] for found in translator.translate(lines)]


@pytest.mark.slow
@representative(
    ("beam_size", "others"),
    # Threads of a test are few: several on a busy machine wait for each other.
    [(1, [(64, 1)]), (4, [(7, 1), (64, 2), (NUM_LINES, 1)])],
)
def test_r17_a_line_has_one_translation_in_any_batch_order_and_number_of_threads(
    beam_size: int, others: list[tuple[int, int]], trained: TrainedModel, lines: list[str]
) -> None:
    expected = translated(trained, lines, window=1, beam_size=beam_size)

    for window, threads in others:
        order = random.Random(window).sample(range(len(lines)), len(lines))
        actual = translated(
            trained, [lines[i] for i in order], window=window, threads=threads,
            beam_size=beam_size,
        )  # fmt: skip
        for candidate, i in zip(actual, order, strict=True):
            assert candidate.text == expected[i].text, lines[i]
            assert candidate.score == pytest.approx(expected[i].score, abs=1e-4)


@needs_native
@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_r17_on_a_cpu_a_line_has_one_translation_to_the_bit(
    tiny_model: Path, lines: list[str], precision: str, beam_size: int
) -> None:
    def candidates(some: list[str], *, workers: int = 1, **how: int) -> list[Candidate]:
        search = SearchConfig(beam_size=beam_size, **how)  # type: ignore[arg-type]
        translator = Translator.load(
            tiny_model,
            TranslatorOptions(search=search, word_scores=True),
            device="cpu",
            precision=precision,
            workers=workers,
        )
        return [actual.candidates[0] for actual in translator.translate(some)]

    some = lines[:60]
    expected = candidates(some, buffer_size=1)

    assert candidates(some) == expected
    assert candidates(some[::-1], max_tokens=300)[::-1] == expected
    assert candidates(some, workers=2, max_tokens=100) == expected


@pytest.mark.slow
def test_r17_reported_score_is_that_of_the_text_by_itself(
    trained: TrainedModel, lines: list[str]
) -> None:
    result = translated(trained, lines, window=64)

    source, target = trained.tokenizers.source, trained.tokenizers.target
    for line, candidate in zip(lines, result, strict=True):
        if not line:
            assert (candidate.text, candidate.score) == ("", 0)
            continue
        ids = target.encode([candidate.text])[0]
        log_probability = forced(trained, source.encode([line])[0], ids)
        assert candidate.log_probability == pytest.approx(log_probability, abs=1e-4), line
        normalized = log_probability / (len(ids) + 1) ** SearchConfig().length_penalty
        assert candidate.score == pytest.approx(normalized, abs=1e-4)


@torch.inference_mode()
def forced(trained: TrainedModel, source: list[int], target: list[int]) -> float:
    """Log-probability of a target and </s>, all its positions at once, nothing beside it."""
    start_id, eos_id = trained.tokenizers.target.start_id, trained.tokenizers.target.eos_id
    batch = make_batch([source], [target], start_id=start_id, eos_id=eos_id)
    logits = trained.transformer(batch.source, batch.source_keep, batch.target_in)  # (1, T, V)
    log_probs = logits.log_softmax(2).gather(2, batch.target_out[:, :, None])
    return float(log_probs.sum())


# --- R15: memory in translation -----------------------------------------------------------------


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.delenv(failpoint.VARIABLE, raising=False)
    failpoint.reset_faults()


COMMAND = ["--device", "cpu", "--precision", "fp32", "--workers", "1", "--buffer-size", "16"]


def test_r15_translation_is_the_same_wherever_memory_does_not_suffice(
    tiny_model: Path, lines: list[str], faults: pytest.MonkeyPatch
) -> None:
    command = ["translate", "-m", str(tiny_model), *COMMAND, "--with-score"]
    text = "".join(f"{line}\n" for line in lines[:40])
    expected = invoke(command, text).out

    for lack in (
        "1=memory",
        "2=memory",
        "3=memory",
        "1=memory,translate_batch:2=memory",
        "4=memory",
    ):
        faults.setenv(failpoint.VARIABLE, f"translate_batch:{lack}")
        failpoint.reset_faults()
        result = invoke(command, text)

        assert result.code == 0, result.err
        pairs = list(zip(result.out.split("\n"), expected.split("\n"), strict=True))
        assert [mine.partition("\t")[2] for mine, _ in pairs] == [
            theirs.partition("\t")[2] for _, theirs in pairs
        ]


def test_r15_line_that_memory_does_not_hold_by_itself_is_told(
    tiny_model: Path, faults: pytest.MonkeyPatch
) -> None:
    faults.setenv(failpoint.VARIABLE, "translate_batch:1+=memory")
    failpoint.reset_faults()

    result = invoke(["translate", "-m", str(tiny_model), *COMMAND], "\none two\nthree\n")

    assert result.code == 5
    assert result.err.endswith(
        "error: line 2: cpu has no memory for a segment of 2 tokens with a beam of 4\n"
        "hint: lower `--beam-size` or `--max-length`, or use `--device cpu`\n"
    )
