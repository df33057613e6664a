"""Each share is that of a forward pass whose vector was replaced by hand."""

import re

import pytest
import torch
from torch import Tensor

from tests.pictures.test_explaining import CLOSE, ModelOf, every_shape, model_of
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.model.recording import recording
from tfm_cli.model_directory.weights import TrainedModel
from tfm_cli.pictures import patching
from tfm_cli.pictures.explaining import ExplainOptions, explain
from tfm_cli.pictures.explanation import Explanation

__all__ = ["model_of"]  # the fixture

SENTENCE = "one three five seven nine two"
TARGET = "eins drei"
OTHERS = [SENTENCE.replace(word, "eight") for word in SENTENCE.split()]


def contrasted(model: TrainedModel) -> Explanation:
    """Return an explanation beside a sentence with as many tokens, given a target of its own."""
    encode = model.tokenizers.source.encode
    (length,) = map(len, encode([SENTENCE]))
    other = next(each for each in OTHERS if len(encode([each])[0]) == length)
    return explain(model, SENTENCE, target=TARGET, options=ExplainOptions(contrast=other))


def vectors(model: TrainedModel, ids: Tensor) -> list[Tensor]:
    """Return the input of the encoder layers and the output of each, (1, S, D)."""
    with recording(model.transformer) as values:
        model.transformer.encode(ids, None)
    found = [values["source.input"]]
    for layer in model.transformer.encoder_layers:
        found.append(layer(found[-1], None))
    return found


@pytest.fixture(autouse=True)
def any_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow every difference, since those of random weights are small."""
    monkeypatch.setattr(patching, "_MIN_CHANGE", 0.0)


@torch.inference_mode()
@every_shape
def test_shares_are_those_of_vectors_replaced_by_hand(model_of: ModelOf, shape: str) -> None:
    model = model_of(shape)
    transformer, target = model.transformer, model.tokenizers.target
    explanation = contrasted(model)
    made = explanation.contrast
    assert made is not None
    first, second = (torch.tensor([each.ids]) for each in (explanation.source, made.source))
    (prefix,) = target.encode([made.prefix])
    reads = torch.tensor([[target.start_id, *prefix]])

    def log_odds(x: Tensor, done: int) -> float:
        for layer in list(transformer.encoder_layers)[done:]:
            x = layer(x, None)
        memory = x if transformer.encoder_norm is None else transformer.encoder_norm(x)
        log_probs = transformer.logits(transformer.decode(reads, memory, None))[0, -1].log_softmax(
            0
        )
        return float(log_probs[made.tokens.ids[0]] - log_probs[made.tokens.ids[1]])

    ours, theirs = vectors(model, first), vectors(model, second)
    own, other = log_odds(ours[0], 0), log_odds(theirs[0], 0)
    assert (made.log_odds, made.other_log_odds) == pytest.approx((own, other), abs=CLOSE)
    assert made.shares.shape == (len(ours), first.shape[1])
    for layer, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
        for position in range(first.shape[1]):
            patched = mine.clone()
            patched[0, position] = its[0, position]
            share = (log_odds(patched, layer) - own) / (other - own)
            assert made.shares[layer, position] == pytest.approx(share, abs=1e-4)


def test_a_token_that_both_sentences_have_carries_nothing_before_the_first_layer(
    model_of: ModelOf,
) -> None:
    explanation = contrasted(model_of())
    made = explanation.contrast
    assert made is not None
    pairs = zip(explanation.source.ids, made.source.ids, made.shares[0].tolist(), strict=True)
    differing = [share for one, other, share in pairs if one != other]
    assert differing
    if len(differing) == 1:
        assert differing[0] == pytest.approx(1, abs=1e-4)
    pairs = zip(explanation.source.ids, made.source.ids, made.shares[0].tolist(), strict=True)
    # Only the order of sums in a batch may differ.
    assert max(abs(share) for one, other, share in pairs if one == other) < 1e-3


def test_model_is_as_before(model_of: ModelOf) -> None:
    model = model_of()
    before = vectors(model, torch.tensor([[4, 5, 6]]))

    contrasted(model)

    assert not any(layer._forward_hooks for layer in model.transformer.encoder_layers)
    for one, other in zip(before, vectors(model, torch.tensor([[4, 5, 6]])), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SENTENCE, "`--contrast`: both sentences have the same translation, `"),
        (f"{SENTENCE} four", " tokens"),
    ],
)
def test_sentences_that_cannot_be_contrasted_are_refused(
    model_of: ModelOf, other: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        explain(model_of(), SENTENCE, options=ExplainOptions(contrast=other))


def test_sentences_that_hardly_differ_are_refused(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patching, "_MIN_CHANGE", 1e6)

    with pytest.raises(ConfigError, match="there is no difference to follow"):
        contrasted(model_of())


def test_blank_contrast_is_refused(model_of: ModelOf) -> None:
    with pytest.raises(DataError, match="`--contrast` is blank"):
        explain(model_of(), SENTENCE, options=ExplainOptions(contrast=" "))
