import math
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.decoding.searching import beam_search, sample
from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.decoding.ensemble import Ensemble
from tfm_cli.decoding.interface import Hypothesis, TargetVocabulary
from tfm_cli.decoding.restricted import RestrictedVocabulary
from tfm_cli.model.transformer import Transformer

VOCAB, EOS, START, BANNED = 40, 3, 2, (0, 1, 2)
LENGTHS = [7, 3, 9, 1, 5]
LIMITS = [12, 4, 15, 20, 9]
PREFIXES = [[], [8, 0], [], [], [39]]


def model_of(seed: int) -> Transformer:
    torch.manual_seed(seed)
    model = transformer_of(
        VOCAB, encoder_layers=1, decoder_layers=2, width=16, heads=2, feed_forward_width=24,
    ).eval().double()  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def allowed_of(share: float) -> Tensor:
    allowed = torch.rand(len(LENGTHS), VOCAB) < share
    allowed[:, EOS] = True
    for row, prefix in enumerate(PREFIXES):
        allowed[row, prefix] = True
    return allowed


class Masked:
    """Does what a shortlist does, plainly: all logits, and -inf for what may not be written."""

    def __init__(self, model: Transformer, allowed: Tensor) -> None:
        self.model, self.allowed = model, allowed.clone()
        self.allowed[:, list(BANNED)] = True  # which the search bans, and counts

    def start(self, source: Tensor, keep: Tensor | None) -> Any:
        model, inner = self, self.model.start(source, keep)

        class State:
            allowed = model.allowed
            state = inner

            def reorder(self, rows: Tensor) -> None:
                self.state.reorder(rows)

            def select(self, segments: Tensor) -> None:
                self.state.select(segments)
                self.allowed = self.allowed[segments]

        return State()

    def step(self, pieces: Tensor, state: Any) -> Tensor:
        logits = self.model.step(pieces, state.state)
        rows = state.allowed.repeat_interleave(len(pieces) // len(state.allowed), dim=0)
        return logits.masked_fill(~rows, -math.inf)


def search(
    model: Any, scope: RestrictedVocabulary, rows: list[int], **options: Any
) -> list[list[Hypothesis]]:
    ids = torch.arange(4, 4 + max(LENGTHS)).repeat(len(rows), 1) + torch.tensor(rows)[:, None]
    keep = torch.arange(max(LENGTHS)) < torch.tensor([LENGTHS[row] for row in rows])[:, None]
    whole = TargetVocabulary(START, EOS, BANNED)
    common = dict(
        limits=[LIMITS[row] for row in rows], vocabulary=scope.vocabulary(whole),
        token_log_probs=True,
        prefixes=[scope.prefix(i, PREFIXES[row]) for i, row in enumerate(rows)], **options,
    )  # fmt: skip
    if "seeds" in options:
        common["seeds"] = [options["seeds"][row] for row in rows]
        found = [[h] for h in sample(model, ids, keep[:, None, None, :], **common)]
    else:
        found = beam_search(model, ids, keep[:, None, None, :], **common)
    return [[scope.restored(i, h) for h in each] for i, each in enumerate(found)]


OPTIONS: list[dict[str, Any]] = [
    {"beam_size": 1},
    {"beam_size": 4},
    {"beam_size": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "renormalize": True},
    {"seeds": [5, 6, 7, 8, 9]},
    {"seeds": [5, 6, 7, 8, 9], "top_k": 7, "top_p": 0.9, "temperature": 1.3},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def assert_same(actual: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[h.ids for h in each] for each in actual] == [
        [h.ids for h in each] for each in expected
    ]
    for ours, theirs in zip(chain(*actual), chain(*expected), strict=True):
        assert ours.score == pytest.approx(theirs.score)
        assert ours.token_log_probs == pytest.approx(theirs.token_log_probs)


@torch.inference_mode()
@every_option
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("count", [1, 2])
def test_search_finds_what_it_finds_where_all_else_has_no_probability(
    options: dict[str, Any], share: float, count: int
) -> None:
    models = [model_of(seed) for seed in range(count)]
    allowed, rows = allowed_of(share), list(range(len(LENGTHS)))
    scope = RestrictedVocabulary.of(allowed, [EOS, START, *BANNED])
    masked = [Masked(model, allowed) for model in models]

    result = search(scope.model(models), scope, rows, **options)

    assert_same(
        result,
        search(
            Ensemble(masked) if count > 1 else masked[0], RestrictedVocabulary(), rows, **options
        ),
    )


@torch.inference_mode()
@every_option
def test_segment_is_searched_as_alone(options: dict[str, Any]) -> None:
    model, allowed = model_of(1), allowed_of(0.3)
    allowed[2] = True  # one of the neighbors may write all
    special = [EOS, START, *BANNED]
    scope = RestrictedVocabulary.of(allowed, special)
    together = search(scope.model([model]), scope, list(range(len(LENGTHS))), **options)

    for row in range(len(LENGTHS)):
        own = RestrictedVocabulary.of(allowed[row : row + 1], special)
        assert_same(search(own.model([model]), own, [row], **options), together[row : row + 1])


def test_model_gives_the_logits_that_some_segment_needs() -> None:
    allowed = torch.zeros(2, 100, dtype=torch.bool)
    allowed[0, [3, 50]], allowed[1, [3, 7, 99]] = True, True

    scope = RestrictedVocabulary.of(allowed, [3, 2, 2, 1])

    assert scope.required is not None
    assert scope.required.tolist() == [1, 2, 3, 7, 50, 99]
    assert scope.shortlists is not None
    assert scope.shortlists.ids.tolist() == [[3, 2, 1, 50, 3], [3, 2, 1, 7, 99]]
    assert scope.shortlists.is_padding.tolist() == [[False] * 4 + [True], [False] * 5]
    assert torch.equal(scope.required[scope.shortlists.columns], scope.shortlists.ids)
    assert scope.vocabulary(TargetVocabulary(2, 3, [1])) == TargetVocabulary(1, 0, [2])
    assert scope.prefix(1, [99, 3, 7]) == [4, 0, 3]


def test_model_gives_all_logits_where_nearly_all_are_needed() -> None:
    allowed = torch.ones(2, 100, dtype=torch.bool)
    allowed[0, 50:] = False

    scope = RestrictedVocabulary.of(allowed, [3])

    assert scope.required is None
    assert scope.shortlists is not None
    assert torch.equal(scope.shortlists.columns, scope.shortlists.ids)


def test_whole_vocabulary_is_searched_as_ever() -> None:
    scope = RestrictedVocabulary.of(torch.ones(3, 100, dtype=torch.bool), [3, 2])
    model = model_of(1)

    assert scope == RestrictedVocabulary()
    assert scope.model([model]) is model
    assert scope.vocabulary(TargetVocabulary(2, 3)) == TargetVocabulary(2, 3)
    assert scope.prefix(0, [5, 6]) == [5, 6]
    hypothesis = Hypothesis((5, 6), -1.0, -0.5)
    assert scope.restored(0, hypothesis) is hypothesis
