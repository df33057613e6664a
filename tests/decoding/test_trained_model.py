"""Search on a Transformer that has learned something, in double precision: no near ties."""

# B segments, S source pieces, T target pieces, R rows, t pieces written

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import TinyCorpus
from tests.decoding.searching import beam_search, sample
from tfm_cli.corpus.batch import make_batch, pad_source
from tfm_cli.decoding.interface import Hypothesis, StateT, StepModel
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.weights import TrainedModel, load_model


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    model = load_model(tiny_model, torch.device("cpu"))
    model.transformer.double()
    return model


@pytest.fixture(scope="module")
def ids(trained: TrainedModel, tiny_corpus: TinyCorpus) -> list[list[int]]:
    """Sources of 2 to 7 pieces."""
    return trained.tokenizers.source.encode(tiny_corpus.lines("test.en")[:10])


@dataclass
class PrefixState:
    source: Tensor  # (B, S)
    source_keep: Tensor | None  # (B, 1, 1, S)
    prefix: Tensor  # (R, t)

    def reorder(self, parents: Tensor) -> None:
        beams = len(self.prefix) // len(parents)
        rows = parents + beams * torch.arange(len(parents))[:, None]
        self.prefix = self.prefix[rows.flatten()]

    def select(self, segments: Tensor) -> None:
        beams = len(self.prefix) // len(self.source)
        rows = segments[:, None] * beams + torch.arange(beams)
        self.prefix = self.prefix[rows.flatten()]
        self.source = self.source[segments]
        self.source_keep = None if self.source_keep is None else self.source_keep[segments]


class Uncached:
    """Computes the whole prefix anew at each step, as in training."""

    def __init__(self, transformer: Transformer) -> None:
        self.transformer = transformer

    def start(self, source: Tensor, source_keep: Tensor | None) -> PrefixState:
        empty = torch.empty(len(source), 0, dtype=torch.long)
        return PrefixState(source, source_keep, empty)

    def step(self, pieces: Tensor, state: PrefixState) -> Tensor:
        state.prefix = torch.cat((state.prefix, pieces[:, None]), dim=1)  # (R, t)
        beam = len(pieces) // len(state.source)
        source = state.source.repeat_interleave(beam, dim=0)  # (R, S)
        keep = state.source_keep
        keep = None if keep is None else keep.repeat_interleave(beam, dim=0)
        logits: Tensor = self.transformer(source, keep, state.prefix)  # (R, t, V)
        return logits[:, -1]


@torch.inference_mode()
def search(
    model: StepModel[StateT], trained: TrainedModel, ids: list[list[int]], beam_size: int
) -> list[list[Hypothesis]]:
    tokenizer = trained.tokenizers.source
    source, source_keep = pad_source(ids, tokenizer.eos_id)
    return beam_search(
        model, source, source_keep, limits=[len(i) + 3 for i in ids],
        start_id=tokenizer.start_id, eos_id=tokenizer.eos_id,
        banned_ids=[tokenizer.unk_id], beam_size=beam_size,
    )  # fmt: skip


@torch.inference_mode()
def draw(trained: TrainedModel, ids: list[list[int]], seeds: list[int]) -> list[Hypothesis]:
    tokenizer = trained.tokenizers.source
    source, source_keep = pad_source(ids, tokenizer.eos_id)
    return sample(
        trained.transformer, source, source_keep, limits=[len(i) + 3 for i in ids], seeds=seeds,
        start_id=tokenizer.start_id, eos_id=tokenizer.eos_id, temperature=2.0,
    )  # fmt: skip


@torch.inference_mode()
def forced(trained: TrainedModel, source: list[int], target: tuple[int, ...]) -> float:
    """Log-probability of a target and </s>, all its positions at once."""
    tokenizer = trained.tokenizers.source
    batch = make_batch(
        [torch.tensor(source, dtype=torch.long).numpy()],
        [torch.tensor(target, dtype=torch.long).numpy()],
        start_id=tokenizer.start_id,
        eos_id=tokenizer.eos_id,
    )
    logits = trained.transformer(batch.source, batch.source_keep, batch.target_in)  # (1, T, V)
    log_probs = logits.log_softmax(2).gather(2, batch.target_out[:, :, None])
    return float(log_probs.sum())


@pytest.mark.parametrize("beam_size", [1, 4])
def test_batch_of_one_finds_what_a_batch_of_many_finds(
    trained: TrainedModel, ids: list[list[int]], beam_size: int
) -> None:
    together = search(trained.transformer, trained, ids, beam_size)

    alone = [search(trained.transformer, trained, [i], beam_size)[0] for i in ids]
    assert [[h.ids for h in result] for result in together] == [
        [h.ids for h in result] for result in alone
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 10])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_forced_score_is_the_score_of_the_search(
    trained: TrainedModel, ids: list[list[int]], beam_size: int, batch_size: int
) -> None:
    for first in range(0, len(ids), batch_size):
        batch = ids[first : first + batch_size]
        actual = search(trained.transformer, trained, batch, beam_size)

        for source, hypotheses in zip(batch, actual, strict=True):
            for hypothesis in hypotheses:
                expected = forced(trained, source, hypothesis.ids)
                # Double precision; the sums run in another order.
                assert hypothesis.log_probability == pytest.approx(expected, abs=1e-9)


def test_forced_score_is_the_score_of_the_draw(trained: TrainedModel, ids: list[list[int]]) -> None:
    drawn = draw(trained, ids, list(range(len(ids))))

    assert max(len(hypothesis.ids) for hypothesis in drawn) > 3
    for source, hypothesis in zip(ids, drawn, strict=True):
        expected = forced(trained, source, hypothesis.ids)
        assert hypothesis.log_probability == pytest.approx(expected, abs=1e-9)


def test_draw_does_not_depend_on_the_neighbors(trained: TrainedModel, ids: list[list[int]]) -> None:
    together = draw(trained, ids, list(range(len(ids))))

    alone = [draw(trained, [source], [seed])[0] for seed, source in enumerate(ids)]
    assert [h.ids for h in together] == [h.ids for h in alone]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_caches_do_not_change_what_is_found(
    trained: TrainedModel, ids: list[list[int]], beam_size: int
) -> None:
    cached = search(trained.transformer, trained, ids, beam_size)

    uncached = search(Uncached(trained.transformer), trained, ids, beam_size)
    for with_cache, without in zip(cached, uncached, strict=True):
        assert [h.ids for h in with_cache] == [h.ids for h in without]
        for one, other in zip(with_cache, without, strict=True):
            assert one.log_probability == pytest.approx(other.log_probability, abs=1e-9)
