import dataclasses
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tfm_cli.config.settings import ModelConfig, RunConfig, TrainingConfig, ValidationConfig
from tfm_cli.corpus.batching import BatchOrder
from tfm_cli.corpus.store import CorpusStore, Segments
from tfm_cli.errors import DivergedError
from tfm_cli.model_directory.weights import build_transformer
from tfm_cli.training import loop
from tfm_cli.training.batches import BatchSampler
from tfm_cli.training.events import CheckpointDue, Event, Logged, Stopped, Updated, Validated
from tfm_cli.training.loop import train
from tfm_cli.training.optimizer import MovingAverage, make_optimizer
from tfm_cli.training.parallel_model import ParallelModel
from tfm_cli.training.state import TrainState
from tfm_cli.training.update import UpdateStats
from tfm_cli.training.validation import Validation

CONFIG = RunConfig(
    model=ModelConfig(
        encoder_layers=1, decoder_layers=1, width=8, heads=2, feed_forward_width=8, dropout=0.0
    ),
    training=TrainingConfig(
        max_updates=6, max_tokens=16, disp_freq=2, save_freq=3, ema_decay=0.5, lr_warmup=2
    ),
    validation=ValidationConfig(freq=2, metrics=("bleu",), early_stopping=0),
)
NUM_PAIRS = 20


def with_training(**values: Any) -> RunConfig:
    return dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, **values))


def with_validation(**values: Any) -> RunConfig:
    validation = dataclasses.replace(CONFIG.validation, **values)
    training = dataclasses.replace(CONFIG.training, max_updates=100)
    return dataclasses.replace(CONFIG, validation=validation, training=training)


class Run:
    """A training loop on random ids."""

    def __init__(
        self,
        config: RunConfig = CONFIG,
        *,
        state: TrainState | None = None,
        scores: Sequence[float] | None = None,
        interrupted: Callable[[], Stopped | None] = lambda: None,
    ) -> None:
        draw = np.random.default_rng(3)
        starts = np.cumsum([0, *draw.integers(1, 7, NUM_PAIRS)])
        self.ids = draw.integers(4, 20, int(starts[-1])).astype(np.int32)
        segments = Segments(self.ids, starts)
        store = CorpusStore(segments, segments, Counter())
        training = config.training
        order = BatchOrder(
            store.source.lengths,
            store.target.lengths,
            max_tokens=training.max_tokens,
            seed=training.seed,
        )
        self.sampler = BatchSampler(
            store=store, order=order, batches_per_update=training.update_freq,
            micro_batch=training.max_tokens, start_id=2, eos_id=3, source_eos_id=3,
        )  # fmt: skip
        torch.manual_seed(1)
        self.model = build_transformer(config.model, (20, 20))
        self.average = MovingAverage(self.model, config.training.ema_decay)
        self.optimizer = make_optimizer(self.model, config.training)
        self.state = state or TrainState()
        self.judged: list[dict[str, torch.Tensor]] = []
        self._scores = iter(scores) if scores is not None else None
        self._metric = config.validation.metrics[0]
        self._config = config
        self._interrupted = interrupted

    def all_events(self) -> Iterator[Event]:
        return train(
            ParallelModel(self.model, label_smoothing=0.1), self.sampler, self.optimizer,
            self.average, self.state, self._config,
            validate=self._validate if self._scores else None, interrupted=self._interrupted,
        )  # fmt: skip

    def events(self) -> Iterator[Event]:
        """Yield all events but those of each update."""
        return (event for event in self.all_events() if not isinstance(event, Updated))

    def _validate(self) -> Validation:
        assert self._scores is not None
        self.judged.append({n: p.detach().clone() for n, p in self.model.named_parameters()})
        return Validation({self._metric: next(self._scores)}, ())


def facts(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [
        (type(event).__name__, event.update) for event in events if not isinstance(event, Stopped)
    ]


def test_progress_comes_before_validation_and_validation_before_saving() -> None:
    events = list(Run(scores=[1, 2, 3]).events())

    assert facts(events) == [
        ("Logged", 2), ("Validated", 2), ("CheckpointDue", 3), ("Logged", 4), ("Validated", 4),
        ("Logged", 6), ("Validated", 6), ("CheckpointDue", 6),
    ]  # fmt: skip
    stop = events[-1]
    assert isinstance(stop, Stopped)
    assert stop.is_complete
    assert stop.reason == "6 updates made (--max-updates)"


def test_each_update_is_an_event_with_its_loss_before_all_that_follows_from_it() -> None:
    events = list(Run(scores=[1, 2, 3]).all_events())

    updates = [event for event in events if isinstance(event, Updated)]
    assert [event.update for event in updates] == [1, 2, 3, 4, 5, 6]
    lines = [event for event in events if isinstance(event, Logged)]
    for line, pair in zip(lines, (updates[:2], updates[2:4], updates[4:]), strict=True):
        total = sum(each.loss * each.target_tokens for each in pair if each.loss is not None)
        assert line.loss == pytest.approx(total / sum(each.target_tokens for each in pair))
        assert events.index(pair[1]) == events.index(line) - 1
        assert line.seconds == pair[1].seconds


def test_event_of_an_update_does_not_wait_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_is_check_free", lambda device: False)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: pytest.fail("it was read"))

    events = Run(with_training(disp_freq=9, save_freq=9)).all_events()
    updates = [next(events) for _ in range(3)]

    assert [each.loss for each in updates if isinstance(each, Updated)] == [None] * 3


def test_weights_at_the_end_are_validated_and_saved_if_they_were_not() -> None:
    events = list(Run(with_training(max_updates=5), scores=[1, 2, 3]).events())

    assert facts(events)[-3:] == [("Validated", 4), ("Validated", 5), ("CheckpointDue", 5)]
    last = events[-3]
    assert isinstance(last, Validated)
    assert last.is_best
    assert not last.counted


def test_validation_off_schedule_leaves_best_score_and_patience_alone() -> None:
    run = Run(with_training(max_updates=5), scores=[3, 2, 9])

    list(run.events())

    assert (run.state.best_score, run.state.best_update, run.state.stalled) == (3, 2, 1)
    assert run.state.validated_update == 5


def test_finished_run_does_nothing_more() -> None:
    first = Run(with_training(max_updates=5), scores=[1, 2, 3])
    list(first.events())

    events = list(Run(with_training(max_updates=5), state=first.state, scores=[9]).events())

    assert [type(event) for event in events] == [Stopped]


def test_finished_run_validates_weights_that_never_were() -> None:
    state = TrainState(update=5)

    events = list(Run(with_training(max_updates=4), state=state, scores=[7]).events())

    assert facts(events) == [("Validated", 5), ("CheckpointDue", 5)]


def test_without_validation_text_there_is_no_validation() -> None:
    events = list(Run().events())

    assert not [event for event in events if isinstance(event, Validated)]


def test_average_of_the_weights_is_validated_and_the_weights_come_back() -> None:
    run = Run(with_training(max_updates=2), scores=[1])
    seen = [dict(run.model.named_parameters()) for event in run.events()][-1]

    (judged,) = run.judged
    for name, weight in run.average.weights.items():
        torch.testing.assert_close(judged[name], weight, rtol=0, atol=0)
    assert any(not torch.equal(seen[name], judged[name]) for name in judged)


@pytest.mark.parametrize(
    ("metric", "scores", "best", "stopped_at"),
    [
        ("bleu", [5, 4, 5, 9], (5, 2), 6),  # as good is not better
        ("bleu", [5, 4, 6, 5, 5], (6, 6), 10),  # a better one starts the count again
        ("loss", [5, 6, 4, 5, 4], (4, 6), 10),  # a loss should fall
        ("bleu", [float("nan"), float("nan"), 1], (None, 0), 4),  # no number is never best
        ("loss", [3, float("nan"), float("inf"), 1], (3, 2), 6),
    ],
)
def test_run_stops_when_validations_in_a_row_bring_nothing_better(
    metric: str, scores: list[float], best: tuple[float | None, int], stopped_at: int
) -> None:
    run = Run(with_validation(metrics=(metric,), early_stopping=2), scores=scores)

    stop = list(run.events())[-1]

    assert isinstance(stop, Stopped)
    assert stop.reason == f"2 validations without a better {metric} (--early-stopping)"
    assert run.state.update == stopped_at
    assert (run.state.best_score, run.state.best_update) == best


def test_patience_is_kept_by_a_resumed_run() -> None:
    config = with_validation(early_stopping=3)
    state = TrainState(update=4, best_score=7.0, best_update=2, stalled=1, validated_update=4)
    run = Run(config, state=state, scores=[6, 5, 9])

    list(run.events())

    assert run.state.update == 8


def test_first_metric_decides_on_the_best() -> None:
    events = list(Run(scores=[1, 3, 2]).events())

    judged = [event for event in events if isinstance(event, Validated)]
    assert [event.is_best for event in judged] == [True, True, False]


def test_every_pair_is_used_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    real, pieces = loop.update, []  # type: ignore[attr-defined]

    def watched(model: Any, plan: Any, *arguments: Any) -> Any:
        for each in plan.micro_batches:
            pieces.extend(each.batch.target_out.flatten()[each.batch.target_positions].tolist())
        return real(model, plan, *arguments)

    monkeypatch.setattr(loop, "update", watched)
    run = Run(with_training(max_updates=0, max_epochs=2, update_freq=3))
    stop = list(run.events())[-1]

    assert isinstance(stop, Stopped)
    assert stop.reason == "2 epochs made (--max-epochs)"
    assert sorted(pieces) == sorted(2 * [*run.ids.tolist(), *[3] * NUM_PAIRS])
    assert (run.state.epoch, run.state.position) == (2, 0)
    assert run.state.target_tokens == len(pieces)


def test_interruption_saves_first_and_validates_only_on_request() -> None:
    for judges in (False, True):
        stop = Stopped("enough", is_complete=False, validate_first=judges)
        answers = iter([None, None, None, stop])
        run = Run(with_training(save_freq=10), scores=[1, 2], interrupted=answers.__next__)

        events = list(run.events())

        expected = [("Logged", 2), ("Validated", 2)]
        expected += [("Validated", 3)] if judges else []
        assert facts(events) == [*expected, ("CheckpointDue", 3)]
        assert events[-1] == stop


def test_interruption_before_any_update_saves_nothing() -> None:
    stop = Stopped(signal.SIGTERM.name, is_complete=False, validate_first=False)

    assert list(Run(interrupted=lambda: stop).events()) == [stop]


def test_loss_of_a_progress_line_is_the_mean_over_all_tokens_since_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, made = loop.update, []  # type: ignore[attr-defined]

    def watched(*arguments: Any, **named: Any) -> Any:
        made.append(real(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(loop, "update", watched)
    lines = [event for event in Run().events() if isinstance(event, Logged)]

    for line, stats in zip(lines, (made[:2], made[2:4], made[4:]), strict=True):
        total = sum(float(each.nll) for each in stats)
        assert line.loss == total / sum(each.target_tokens for each in stats)
        assert line.gradient_norm == float(stats[-1].gradient_norm)
        assert line.learn_rate == stats[-1].learn_rate


def test_non_finite_weights_are_neither_validated_nor_saved() -> None:
    for spoil in ("model", "average", "moment"):
        run = Run(with_training(save_freq=2, disp_freq=9), scores=[1, 2])
        events = run.events()
        assert isinstance(next(events), Validated)
        assert isinstance(next(events), CheckpointDue)
        weight = next(run.model.parameters())
        if spoil == "model":
            weight.data[0] = float("inf")
        elif spoil == "average":
            run.average.weights["target_embedding.weight"][5] = float("nan")
        else:
            run.optimizer.state[weight]["exp_avg_sq"][7] = float("inf")

        with pytest.raises(DivergedError, match=r"update \d: ") as caught:
            list(events)

        assert "`--learn-rate`" in str(caught.value.hint)


@pytest.mark.parametrize("skips", [False, True])
def test_average_includes_the_weights_once_for_each_update_made_or_skipped(
    skips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(with_training(max_updates=2, bad_updates="retry"))
    if skips:
        monkeypatch.setattr(UpdateStats, "is_finite", lambda stats: stats.number > 1)
    before = {name: weight.clone() for name, weight in run.average.weights.items()}
    weights: list[dict[str, torch.Tensor]] = []
    include = MovingAverage.include

    def watched(average: MovingAverage, number: int) -> None:
        weights.append({n: p.detach().clone() for n, p in run.model.named_parameters()})
        include(average, number)

    monkeypatch.setattr(MovingAverage, "include", watched)
    list(run.events())

    assert len(weights) == 2
    for name, average in run.average.weights.items():
        expected = before[name]
        for number, each in enumerate(weights, 1):
            decay = min(0.5, (1 + number) / (10 + number))
            expected = decay * expected + (1 - decay) * each[name]
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)  # single precision
