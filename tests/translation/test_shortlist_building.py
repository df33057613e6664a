from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from tests.conftest import TinyCorpus
from tfm_cli.config.settings import SearchConfig
from tfm_cli.errors import DataError
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.translation.search import SearchOptions
from tfm_cli.translation.shortlist import Shortlist
from tfm_cli.translation.shortlist_building import ShortlistOptions, build_shortlist
from tfm_cli.translation.torch_engine import TorchEngine

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


def built(
    trained: TrainedModel, pairs: list[tuple[str, str]], *, best: int = 5, frequent: int = 3
) -> Shortlist:
    options = SearchOptions(settings=SearchConfig())
    engine = TorchEngine([trained.transformer], trained.tokenizers, options, device=CPU)
    return build_shortlist(
        pairs, engine, trained.tokenizers,
        ShortlistOptions(best=best, frequent=frequent, max_length=50, max_tokens=40), name="corpus",
    )  # fmt: skip


@pytest.fixture
def pairs(tiny_corpus: TinyCorpus) -> list[tuple[str, str]]:
    lines = (tiny_corpus.lines(f"valid.{language}")[:25] for language in ("en", "de"))
    return [("one", "eins"), ("", "zwei"), *zip(*lines, strict=True)]


@torch.inference_mode()
def test_table_agrees_with_counting_pair_by_pair(
    trained: TrainedModel, pairs: list[tuple[str, str]]
) -> None:
    model, source_side, target_side = (
        trained.transformer, trained.tokenizers.source, trained.tokenizers.target,
    )  # fmt: skip
    links: defaultdict[int, Counter[int]] = defaultdict(Counter)
    seen: Counter[int] = Counter()
    written: Counter[int] = Counter()
    for source, target in pairs:
        if not source:
            continue
        (read,), (said,) = source_side.encode([source]), target_side.encode([target])
        seen.update(read)
        written.update(said)
        weights = model.cross_attention_weights(
            torch.tensor([[*read, source_side.eos_id]]), None,
            torch.tensor([[target_side.start_id, *said]]), layer=0,
        )[0]  # fmt: skip
        for step, piece in enumerate(said):
            row = weights[step, :-1].tolist()
            for place in sorted(range(len(read)), key=lambda i: -row[i])[:3]:
                links[read[place]][piece] += 1
    frequent = sorted(written, key=lambda piece: (-written[piece], piece))[:3]

    table = built(trained, pairs)

    assert table.frequent.tolist() == frequent
    assert table.seen.tolist() == [seen[piece] for piece in range(source_side.vocab_size)]
    for piece in range(source_side.vocab_size):
        rare = [(t, count) for t, count in links[piece].items() if t not in frequent]
        expected = sorted(rare, key=lambda item: (-item[1], item[0]))[:5]
        places = slice(piece * table.width, (piece + 1) * table.width)
        actual = zip(table.best[places], table.counts[places], strict=True)
        assert [pair for pair in actual if pair[0] >= 0] == expected


def test_translation_of_each_word_is_on_its_list(
    trained: TrainedModel, tiny_corpus: TinyCorpus
) -> None:
    lines = (tiny_corpus.lines(f"train.{language}")[:100] for language in ("en", "de"))
    source, target = trained.tokenizers.source, trained.tokenizers.target

    table = built(trained, list(zip(*lines, strict=True)), best=3, frequent=0)

    for word, translation in (("one", "eins"), ("seven", "sieben"), ("nine", "neun")):
        ((piece,), (expected,)) = source.encode([word])[0], target.encode([translation])[0]
        assert expected in table.needed(piece)


def test_all_frequent_leaves_lists_empty(
    trained: TrainedModel, pairs: list[tuple[str, str]]
) -> None:
    table = built(trained, pairs, frequent=1000)

    assert table.width == 0
    assert len(table.seen) == trained.tokenizers.source.vocab_size
    assert len(table.frequent) == len(
        set(" ".join(target for source, target in pairs if source).split())
    )


def test_corpus_without_a_pair_is_refused(trained: TrainedModel, log_messages: list[str]) -> None:
    with pytest.raises(DataError, match="corpus: 0 usable pairs, dropped: 1 blank side"):
        built(trained, [("", "eins")])


def test_skipped_pairs_are_reported(
    trained: TrainedModel, pairs: list[tuple[str, str]], log_messages: list[str]
) -> None:
    built(trained, [*pairs, ("one " * 60, "eins")])

    assert log_messages == [
        "corpus: 1 pair left out: blank side",
        "corpus: 1 pair left out: too long",
    ]
