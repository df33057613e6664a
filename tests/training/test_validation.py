import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch

from tests.conftest import TinyCorpus
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batch import Batch, make_batch
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.errors import OutOfTime, SignalReceived
from tfm_cli.evaluation.scores import corpus_scores
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.parallel import Parallel
from tfm_cli.training import validation
from tfm_cli.training.validation import (
    Validation,
    ValidationOptions,
    ValidationText,
    distribute_jobs,
    is_better,
    mean_nll,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


def batches(trained: TrainedModel, corpus: TinyCorpus, *, size: int) -> list[Batch]:
    pairs = zip(corpus.lines("valid.en"), corpus.lines("valid.de"), strict=True)
    store = CorpusStore.build(pairs, trained.tokenizers, max_length=99, name="valid")
    return [
        make_batch(
            [store.source[i] for i in range(start, min(start + size, len(store)))],
            [store.target[i] for i in range(start, min(start + size, len(store)))],
            start_id=trained.tokenizers.target.start_id,
            eos_id=trained.tokenizers.target.eos_id,
        )
        for start in range(0, len(store), size)
    ]


def options(**values: Any) -> ValidationOptions:
    return ValidationOptions(
        **{"metrics": ["loss"], "device": CPU, "dtype": torch.float32, **values}
    )


def validate(
    trained: TrainedModel, corpus: TinyCorpus, metrics: list[str], **more: Any
) -> Validation:
    search = SearchConfig(beam_size=2)
    translator = torch_translator(
        trained.transformer, trained.tokenizers, search=search, device=CPU
    )
    text = ValidationText(
        batches(trained, corpus, size=8), corpus.lines("valid.en"), corpus.lines("valid.de")
    )
    return validation.validate(
        trained.transformer, text, lambda: nullcontext(translator), options(metrics=metrics, **more)
    )


def test_loss_is_the_mean_over_all_tokens_for_any_batches(
    trained: TrainedModel, tiny_corpus: TinyCorpus
) -> None:
    total, pieces = 0.0, 0
    for batch in batches(trained, tiny_corpus, size=1):
        with torch.no_grad():
            logits = trained.transformer(batch.source, batch.source_keep, batch.target_in)
        log_probabilities = logits.double().log_softmax(dim=-1)
        picked = log_probabilities.gather(-1, batch.target_out[..., None])
        total -= float(picked.sum())
        pieces += batch.target_out.numel()

    result = [
        mean_nll(trained.transformer, batches(trained, tiny_corpus, size=size), options())
        for size in (1, 7, 40)
    ]

    assert result == pytest.approx([total / pieces] * 3, rel=1e-4)  # fp32 against double


def test_scores_are_those_of_the_translations(
    trained: TrainedModel, tiny_corpus: TinyCorpus
) -> None:
    search = SearchConfig(beam_size=2)
    translator = torch_translator(
        trained.transformer, trained.tokenizers, search=search, device=CPU
    )
    hypotheses = [each.text for each in translator.translate(tiny_corpus.lines("valid.en"))]
    expected = corpus_scores(hypotheses, [tiny_corpus.lines("valid.de")], metrics=["chrf", "bleu"])

    actual = validate(trained, tiny_corpus, ["chrf", "bleu"])

    assert list(actual.values.items()) == [("chrf", expected[0].value), ("bleu", expected[1].value)]
    assert actual.scores == tuple(expected)


def test_samples_are_lines_of_the_text_with_their_translation(
    trained: TrainedModel, tiny_corpus: TinyCorpus
) -> None:
    search = SearchConfig(beam_size=2)
    translator = torch_translator(
        trained.transformer, trained.tokenizers, search=search, device=CPU
    )
    sources, references = tiny_corpus.lines("valid.en"), tiny_corpus.lines("valid.de")
    translations = [each.text for each in translator.translate(sources)]

    samples = validate(trained, tiny_corpus, ["bleu"], num_samples=3).samples
    again = validate(trained, tiny_corpus, ["bleu", "loss"], num_samples=3).samples
    none = validate(trained, tiny_corpus, ["bleu"], num_samples=0).samples
    unsearched = validate(trained, tiny_corpus, ["loss"], num_samples=3).samples

    assert len(set(samples)) == 3
    assert set(samples) <= set(zip(sources, references, translations, strict=True))
    assert samples == again
    assert none == unsearched == ()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_samples_are_spread_over_the_lines_that_are_not_blank(count: int) -> None:
    sources = ["a", "b", " ", "d", "e", "f"]
    references = ["a", "", "c", "d", "e", "f"]

    lines = validation.sample_indices(ValidationText([], sources, references), count)

    assert len(set(lines)) == len(lines) == min(count, 4)
    assert lines == sorted(lines)
    assert set(lines) <= {0, 3, 4, 5}


@pytest.mark.parametrize(
    "metrics", [["loss"], ["bleu"], ["loss", "bleu"], ["bleu", "loss", "chrf"]]
)
def test_values_come_in_the_order_that_was_asked_for(
    metrics: list[str], trained: TrainedModel, tiny_corpus: TinyCorpus
) -> None:
    result = validate(trained, tiny_corpus, metrics)

    assert list(result.values) == metrics
    assert len(result.scores) == len(set(metrics) - {"loss"})


def test_model_is_left_in_training_mode(trained: TrainedModel, tiny_corpus: TinyCorpus) -> None:
    validate(trained, tiny_corpus, ["loss"])

    left_training = trained.transformer.training
    trained.transformer.eval()
    assert left_training


@pytest.mark.parametrize(
    ("metric", "value", "best", "expected"),
    [
        ("bleu", 1.0, None, True),
        ("bleu", 2.0, 1.0, True),
        ("bleu", 1.0, 1.0, False),
        ("chrf", 0.5, 1.0, False),
        ("loss", 1.0, None, True),
        ("loss", 0.5, 1.0, True),
        ("loss", 1.0, 1.0, False),
        ("loss", 2.0, 1.0, False),
        ("bleu", math.nan, None, False),
        ("loss", math.nan, 1.0, False),
        ("loss", math.inf, None, False),
    ],
)
def test_score_should_rise_and_loss_should_fall(
    metric: str, value: float, best: float | None, expected: bool
) -> None:
    assert is_better({metric: value}, best) == expected


@pytest.mark.parametrize(
    ("values", "others", "expected"),
    [
        ({"bleu": 5.0, "chrf": 20.0, "loss": 9.0}, [10.0, 1.0], True),
        ({"bleu": 5.0, "chrf": 10.0, "loss": 0.5}, [10.0, 1.0], True),
        ({"bleu": 5.0, "chrf": 10.0, "loss": 1.0}, [10.0, 1.0], False),
        ({"bleu": 5.0, "chrf": 9.0, "loss": 0.5}, [10.0, 1.0], False),
        ({"bleu": 4.0, "chrf": 20.0, "loss": 0.5}, [10.0, 1.0], False),
        ({"bleu": 5.0, "chrf": math.nan, "loss": 0.5}, [10.0, 1.0], False),
        ({"bleu": 5.0, "chrf": 20.0}, [], False),  # of a run that did not keep them
    ],
)
def test_ties_are_broken_by_the_next_metric(
    values: dict[str, float], others: list[float], expected: bool
) -> None:
    assert is_better(values, 5.0, others) == expected


def test_bleu_has_the_tokenizer_that_was_chosen(
    trained: TrainedModel, tiny_corpus: TinyCorpus
) -> None:
    translator = torch_translator(
        trained.transformer, trained.tokenizers, search=SearchConfig(), device=CPU
    )
    sources, references = tiny_corpus.lines("valid.en"), tiny_corpus.lines("valid.de")

    actual = validation.validate(
        trained.transformer,
        ValidationText([], sources, references),
        lambda: nullcontext(translator),
        options(metrics=["bleu"], tokenize="char"),
    )

    hypotheses = [each.text for each in translator.translate(sources)]
    expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="char")
    assert actual.values == {"bleu": expected.score}
    assert "|tok:char|" in actual.scores[0].signature


class TwoProcesses(Parallel):
    """Rank 0 of two, with a given message of rank 1."""

    def __init__(self, other: bytes) -> None:
        super().__init__(rank=0, world_size=2)
        self.sent: list[bytes] = []
        self._other = other

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        self.sent.append(message)
        return [message, self._other]


def share(reason: str, *, is_signal: bool = False) -> bytes:
    """Return what a process shares that stops in place of its results."""
    return json.dumps({"reason": reason, "is_signal": is_signal}).encode()


def late(job: int) -> int:
    if job == 3:
        raise OutOfTime("1s passed")
    return job


def signalled(job: int) -> int:
    if job == 3:
        raise SignalReceived("SIGTERM was received")
    return job


def test_process_that_has_no_more_time_cuts_off_all_of_them() -> None:
    other_is_cut_off = TwoProcesses(share("2s passed"))
    is_cut_off = TwoProcesses(b"[2, 4]")

    with pytest.raises(OutOfTime, match="2s passed"):
        distribute_jobs([1, 2, 3, 4], lambda job: job, other_is_cut_off)
    with pytest.raises(OutOfTime, match="1s passed") as caught:
        distribute_jobs([1, 2, 3, 4], late, is_cut_off)

    assert not isinstance(caught.value, SignalReceived)
    # The other one waits for an answer, and gets one.
    assert other_is_cut_off.sent == [b"[1, 3]"]
    assert is_cut_off.sent == [share("1s passed")]


@pytest.mark.parametrize(
    ("work", "other"),
    [
        (signalled, share("1s passed")),
        (signalled, b"[2, 4]"),
        (late, share("SIGTERM was received", is_signal=True)),
        (lambda job: job, share("SIGTERM was received", is_signal=True)),
    ],
)
def test_signal_to_any_process_is_the_reason_in_all_of_them(
    work: Callable[[int], int], other: bytes
) -> None:
    with pytest.raises(SignalReceived, match="SIGTERM was received"):
        distribute_jobs([1, 2, 3, 4], work, TwoProcesses(other))


def test_validation_that_is_cut_off_leaves_the_model_in_training(
    trained: TrainedModel, tiny_corpus: TinyCorpus
) -> None:
    def check() -> None:
        raise OutOfTime

    translator = torch_translator(
        trained.transformer, trained.tokenizers, search=SearchConfig(), device=CPU
    )
    text = ValidationText(
        batches(trained, tiny_corpus, size=8),
        tiny_corpus.lines("valid.en"),
        tiny_corpus.lines("valid.de"),
    )

    with pytest.raises(OutOfTime):
        validation.validate(
            trained.transformer, text, lambda: nullcontext(translator), options(check=check)
        )

    assert trained.transformer.training
    trained.transformer.eval()
