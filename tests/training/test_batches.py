import functools
import gzip
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.corpus import test_sampling as sampled
from tests.tiers import representative
from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.corpus.batching import BatchOrder, padding_share
from tfm_cli.corpus.sampling import SubwordSampling
from tfm_cli.corpus.store import CorpusStore, Segments
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.training.batches import BatchSampler, UpdateBatches, prefetched
from tfm_cli.training.memory import CPU_MICRO_BATCH
from tfm_cli.training.state import TrainState

CORPORA = Path(__file__).resolve().parents[3] / "shared" / "corpora"


def store(num_pairs: int = 700) -> CorpusStore:
    draw = np.random.default_rng(3)
    sides = []
    for _ in range(2):
        starts = np.cumsum([0, *draw.integers(1, 30, num_pairs)])
        sides.append(Segments(draw.integers(4, 99, int(starts[-1])).astype(np.int32), starts))
    return CorpusStore(sides[0], sides[1], Counter())


def sampler(
    text: CorpusStore,
    *,
    batches: int = 1,
    micro_batch: int = 200,
    rank: int = 0,
    world_size: int = 1,
    sampling: SubwordSampling | None = None,
) -> BatchSampler:
    order = BatchOrder(
        text.source.lengths, text.target.lengths, max_tokens=200, seed=5, pool_pairs=512,
        sampling=None if sampling is None else sampling.text,
    )  # fmt: skip
    return BatchSampler(
        store=text, order=order, batches_per_update=batches, micro_batch=micro_batch, start_id=2,
        eos_id=3, source_eos_id=3, rank=rank, world_size=world_size,
    )  # fmt: skip


def updates(
    which: BatchSampler, count: int, state: TrainState | None = None
) -> list[UpdateBatches]:
    updates = which.updates(state or TrainState())
    return [next(updates) for _ in range(count)]


def facts(batches: UpdateBatches) -> tuple[object, ...]:
    """All of a batches, so that two can be compared."""
    parts = [(each.number, each.batch.target_out.tolist()) for each in batches.micro_batches]
    return (
        batches.epoch,
        batches.pool,
        batches.position,
        batches.num_batches,
        batches.target_tokens,
        parts,
    )


def sampled_text() -> tuple[CorpusStore, Callable[[], SubwordSampling]]:
    """A text, and a function that returns what samples it, as if in another process."""
    pair = TokenizerPair.joint(sampled.tokenizer("unigram"))
    text = sampled.store(sampled.lines("en", 700), sampled.lines("fr", 700), pair)

    def sampling() -> SubwordSampling:
        return SubwordSampling(text, pair, sides="both", alpha=0.1, seed=5, max_length=250)

    return text, sampling


@pytest.mark.parametrize("is_sampled", [False, True])
def test_updates_resume_from_any_position(is_sampled: bool) -> None:
    if is_sampled:
        text, sampling = sampled_text()
        which, again = (sampler(text, batches=6, sampling=sampling()) for _ in range(2))
    else:
        which = again = sampler(store(), batches=3)
    assert which.order.num_pools == 2
    unbroken = [facts(batches) for batches in updates(which, 110)]
    assert {(epoch, pool) for epoch, pool, *_ in unbroken} >= {(0, 0), (0, 1), (1, 0)}

    for cut in range(0, 80, 7):
        epoch, pool, position = unbroken[cut][:3]
        state = TrainState(epoch=epoch, pool=pool, position=position)  # type: ignore[arg-type]
        assert [facts(batches) for batches in updates(again, 9, state)] == unbroken[cut : cut + 9]


@pytest.mark.parametrize("is_sampled", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_out_what_one_would_do(world_size: int, is_sampled: bool) -> None:
    text, sampling = sampled_text() if is_sampled else (store(), lambda: None)

    def made(rank: int, size: int) -> list[UpdateBatches]:
        return updates(
            sampler(
                text, batches=4, micro_batch=60, rank=rank, world_size=size, sampling=sampling()
            ),
            20,
        )

    alone, together = made(0, 1), [made(rank, world_size) for rank in range(world_size)]

    for one, *parts in zip(alone, *together, strict=True):
        assert {part.target_tokens for part in parts} == {one.target_tokens}
        assert sum(each.batch.target_tokens for each in one.micro_batches) == one.target_tokens
        merged = sorted(
            (each for part in parts for each in part.micro_batches if each.counts),
            key=lambda each: each.number,
        )
        assert len({len(part.micro_batches) for part in parts}) == 1  # all keep step
        assert [each.number for each in merged] == list(range(len(merged)))
        for mine, theirs in zip(merged, one.micro_batches, strict=True):
            assert mine.batch.source.tolist() == theirs.batch.source.tolist()
            assert mine.batch.target_out.tolist() == theirs.batch.target_out.tolist()


def test_parts_hold_the_pairs_of_the_batch_and_no_more_than_fits() -> None:
    text = store()
    which = sampler(text, micro_batch=50)

    for pairs in which.order.batches(0, 0):
        parts = which.split(pairs)
        assert np.concatenate(parts).tolist() == pairs.tolist()
        for part in parts:
            padded = len(part) * int(text.target.lengths[part].max())
            assert len(part) == 1 or padded <= 50


def test_error_in_the_thread_is_raised_in_the_consumer() -> None:
    def failing() -> Iterator[UpdateBatches]:
        yield from updates(sampler(store()), 1)
        raise OSError("gone")

    with prefetched(failing) as ready:
        next(ready)
        with pytest.raises(OSError, match="gone"):
            next(ready)


def test_thread_ends_with_who_asked_for_it() -> None:
    which = sampler(store())
    with prefetched(lambda: which.updates(TrainState())) as ready:
        assert facts(next(ready)) == facts(updates(which, 1)[0])
    # `prefetched` joins its thread: to come here at all is what is tested.


@pytest.mark.slow
@representative("max_tokens", [2048, 4096, 25_000])
@representative("corpus", ["multi30k", "tatoeba-en-de"])
def test_padding_of_a_real_corpus_is_below_five_percent(corpus: str, max_tokens: int) -> None:
    if not (CORPORA / corpus).is_dir():
        pytest.skip(f"needs the corpus in {CORPORA / corpus}")
    source, target = (lengths_of(corpus, side) for side in ("en", "de"))
    text = CorpusStore(segments(source), segments(target), Counter())
    order = BatchOrder(text.source.lengths, text.target.lengths, max_tokens=max_tokens, seed=1)
    which = BatchSampler(
        store=text, order=order, batches_per_update=1, micro_batch=CPU_MICRO_BATCH, start_id=2,
        eos_id=3, source_eos_id=3,
    )  # fmt: skip

    parts = [part for pairs in order.batches(0, 0) for part in which.split(pairs)]

    assert padding_share(parts, text.source.lengths, text.target.lengths) < 0.05
    shuffled = np.array_split(np.random.default_rng(1).permutation(len(source)), len(parts))
    # What sorting saves.
    assert padding_share(shuffled, text.source.lengths, text.target.lengths) > 0.3


def segments(lengths: np.ndarray) -> Segments:
    starts = np.cumsum([0, *(lengths - 1)])
    return Segments(np.zeros(int(starts[-1]), dtype=np.int32), starts)


@functools.cache
def lengths_of(corpus: str, side: str) -> np.ndarray:
    """Pieces of each line of a side, </s> included."""
    plain, zipped = CORPORA / corpus / f"train.{side}", CORPORA / corpus / f"train.{side}.gz"
    data = plain.read_bytes() if plain.exists() else gzip.decompress(zipped.read_bytes())
    lines = data.decode().split("\n")[:-1][:29_000]
    # The number of pieces of `tiny`; they are learned from a tenth of the text to save time.
    config = TokenizerConfig(vocab_size=4000, model_type="bpe")
    tokenizer = Tokenizer(train_tokenizer(lines[:3000], config, seed=1, soft_limit=True))
    return np.array([len(ids) + 1 for ids in tokenizer.encode(lines)])
