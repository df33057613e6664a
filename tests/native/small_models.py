"""Random Transformers of every shape the settings allow, and what to ask of them."""

# V target vocabulary, D width, H heads, E = D // H

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.model.small_transformers import transformer as transformer_of
from tests.native.engine import BANNED, DEFAULTS, EOS, EngineModel, Lines, Reference, Search
from tfm_cli.model.transformer import Transformer

MOST_POSITIONS = 40


def tries(count: int) -> settings:
    """So many examples; one that fails is shown as it is, since to shrink models takes minutes."""
    return settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow], print_blob=True,
    )  # fmt: skip


_KNOWN = inspect.signature(Transformer).parameters


@dataclass(frozen=True)
class Small:
    """A Transformer that was never trained, and how it was made."""

    shape: dict[str, Any]
    vocab_sizes: tuple[int, int]
    seed: int

    def transformer(self) -> Transformer:
        """Weights that leave nothing at 0 or 1, attention uneven, and logits that lie apart."""
        torch.manual_seed(self.seed)
        source_size, target_size = self.vocab_sizes
        model = transformer_of(target_size, source_vocab_size=source_size, **self.shape).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn(parameter.shape)
            elif "projection.weight" in name:
                parameter.data *= 3
        last = model.decoder_norm or model.decoder_layers[-1].feed_forward_norm.norm
        last.weight.data *= 3  # type: ignore[operator, union-attr]
        return model

    def engine(self, precision: str = "fp32", **options: Any) -> EngineModel:
        return EngineModel(self.transformer(), self.shape, precision, **options)

    def reference(self, **options: Any) -> Reference:
        return Reference([self.transformer()], self.vocab_sizes[1], **options)

    def lines(self, *lengths: int, limit: int = 12, seed: int = 1) -> Lines:
        """Random segments of these lengths."""
        chance = torch.Generator().manual_seed(seed)
        sources = [
            torch.randint(3, self.vocab_sizes[0], (length,), generator=chance).tolist()
            for length in lengths
        ]
        return Lines(sources, [limit] * len(sources), seeds=list(range(seed, seed + len(sources))))


def small(vocab_size: int = 60, seed: int = 1, **shape: Any) -> Small:
    """A small model; what is not said is as in the paper."""
    base = {"encoder_layers": 2, "decoder_layers": 2, "width": 24, "heads": 3,
            "feed_forward_width": 40, "max_positions": MOST_POSITIONS}  # fmt: skip
    return Small({**base, **shape}, (vocab_size, vocab_size), seed)


# Sizes that are no multiples of a vector, and some that are.
_WIDTHS = st.one_of(st.integers(1, 20), st.sampled_from([32, 33, 64, 80]))
_VOCABULARIES = st.one_of(st.integers(6, 70), st.sampled_from([128, 257, 1030]))


@st.composite
def smalls(draw: st.DrawFn) -> Small:
    """Models of all settings: the head widths, depths and vocabularies of the two sides differ."""
    positions = draw(st.sampled_from(
        ["sinusoidal", "sinusoidal_halves", "sinusoidal_marian", "learned", "rotary"]
    ))  # fmt: skip
    heads, head_width = draw(st.integers(1, 5)), draw(_WIDTHS)
    if positions == "rotary" or (positions == "sinusoidal_marian" and heads * head_width % 2):
        head_width *= 2
    width = max(2, heads * head_width)
    shape: dict[str, Any] = {
        "encoder_layers": draw(st.integers(1, 3)),
        "decoder_layers": draw(st.integers(1, 3)),
        "width": width,
        "heads": heads if width == heads * head_width else 1,
        "feed_forward_width": draw(st.integers(1, 90)),
        "norm": draw(st.sampled_from(["post", "pre", "deepnorm"])),
        "positions": positions,
        "max_positions": MOST_POSITIONS,
        "activation": draw(st.sampled_from(["relu", "gelu", "swish", "swiglu"])),
        "tied_embeddings": draw(st.sampled_from([0, 1, 2, 3])),
        "scale_embeddings": draw(st.booleans()),
        "output_bias": draw(st.booleans()),
    }
    others = [
        each
        for each in range(1, 9)
        if width % each == 0 and not (positions == "rotary" and width // each % 2)
    ]
    shape |= {
        name: value
        for name, value in (
            ("decoder_heads", draw(st.sampled_from([0, *others]))),
            ("decoder_feed_forward_width", draw(st.sampled_from([0, 1, 30, 67]))),
        )
        if name in _KNOWN
    }
    target_size = draw(_VOCABULARIES)
    source_size = target_size if shape["tied_embeddings"] & 1 else draw(_VOCABULARIES)
    assert shape.keys() <= DEFAULTS.keys()
    return Small(shape, (source_size, target_size), draw(st.integers(0, 10**6)))


@st.composite
def batches(draw: st.DrawFn, model: Small, *, most: int = 6) -> Lines:
    """Segments for a model, each with or without a prefix and a shortlist."""
    source_size, target_size = model.vocab_sizes
    count = draw(st.integers(1, most))
    piece = st.integers(3, target_size - 1)
    prefixes = [draw(st.lists(piece, max_size=3)) for _ in range(count)]
    limits = [max(draw(st.integers(0, 10)), len(prefix)) for prefix in prefixes]
    seeds = [draw(st.integers(0, 2**63 - 1)) for _ in range(count)]
    allowed: list[list[int]] = []
    if draw(st.booleans()):
        lists = [draw(st.sets(piece, max_size=20)) for _ in range(count)]
        allowed = [
            sorted({*some, *prefix, EOS}) if some else []
            for some, prefix in zip(lists, prefixes, strict=True)
        ]
    return Lines(
        [draw(st.lists(st.integers(3, source_size - 1), max_size=12)) for _ in range(count)],
        limits,
        prefixes if draw(st.booleans()) else [],
        seeds,
        allowed,
    )


@st.composite
def searches(draw: st.DrawFn) -> Search:
    """All search options, by a beam or by chance."""
    sampling = draw(st.booleans())
    common: dict[str, Any] = {
        "renormalize": draw(st.booleans()),
        "no_repeat_ngram_size": draw(st.sampled_from([0, 0, 1, 2, 3])),
        "length_norm": draw(st.sampled_from(["power", "wu"])),
        "length_penalty": draw(st.sampled_from([0.0, 0.6, 1.0, 2.5])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 1.3, 0.8])),
        "token_log_probs": draw(st.booleans()),
    }
    if sampling:
        return Search(
            sampling=True, temperature=draw(st.sampled_from([0.5, 1.0, 1.7])),
            top_k=draw(st.sampled_from([0, 1, 3, 10])),
            top_p=draw(st.sampled_from([1.0, 0.9, 0.3])), **common,
        )  # fmt: skip
    return Search(
        beam_size=draw(st.sampled_from([1, 1, 2, 3, 4, 5, 9, 17])),
        early_stopping=draw(st.booleans()), stops_loops=draw(st.booleans()), **common,
    )  # fmt: skip


__all__ = ["BANNED", "Small", "batches", "searches", "small", "smalls"]
