"""Keyed dropout: a key determines the masks, regardless of earlier draws."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Noise:
    """The source of random bits that all dropout layers of a model share."""

    def __init__(self) -> None:
        self._generator = torch.Generator()
        self._part: tuple[int, int, int] | None = None  # first row, end, rows of the whole batch

    def seed(self, key: int, device: torch.device | None = None) -> None:
        """Start the stream of masks that belongs to `key`, in [0, 2**63), on one device.

        On a CPU the stream has its own generator. PyTorch's dropout on a GPU accepts none, so the
        default generator of that GPU is seeded, and no other.
        """
        kind = "cpu" if device is None else device.type
        if kind == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(key)
        elif kind == "mps":
            torch.mps.manual_seed(key)
        else:
            self._generator.manual_seed(key)

    @contextlib.contextmanager
    def replayed(self, state: Tensor) -> Iterator[None]:
        """Draw again, inside the block and on a CPU, the masks that were drawn after `state`."""
        present = self.state()
        self._generator.set_state(state)
        try:
            yield
        finally:
            self._generator.set_state(present)

    @contextlib.contextmanager
    def part(self, start: int, stop: int, *, of: int) -> Iterator[None]:
        """Treat a batch inside the block as rows `start` to `stop` of a batch of `of` rows.

        Its masks are those of these rows in the whole batch.
        """
        self._part = (start, stop, of)
        try:
            yield
        finally:
            self._part = None

    def keep(self, x: Tensor, threshold: int) -> Tensor:
        """Return 1 where the random byte of an element of `x` is at least `threshold`, else 0."""
        shape, rows = self._whole(x)
        keep = torch.empty(x.shape, dtype=x.dtype)
        drawn = self.bytes(shape.numel()).view(shape)
        return torch.ge(drawn[rows], threshold, out=keep)

    def dropped(self, x: Tensor, rate: float) -> Tensor:
        """Return `x` after PyTorch's own dropout, which is used on GPUs."""
        if self._part is None:
            return F.dropout(x, rate)
        shape, rows = self._whole(x)
        _, keep = torch.native_dropout(x.new_empty(shape), rate, True)
        return x * keep[rows] * (1 / (1 - rate))

    def _whole(self, x: Tensor) -> tuple[torch.Size, slice]:
        """Return the shape of the batch that `x` is a part of, and the rows of `x` in it."""
        if self._part is None:
            return x.shape, slice(None)
        start, stop, of = self._part
        return torch.Size((of, *x.shape[1:])), slice(start, stop)

    def state(self) -> Tensor:
        """Return the state of the CPU's generator."""
        return self._generator.get_state()

    def bytes(self, count: int) -> Tensor:
        """Return `count` uniform random bytes, shape (count,), uint8."""
        words = torch.empty(-(-count // 8), dtype=torch.int64)
        # The range is that of all 64-bit integers, so that each bit is random.
        words.random_(-(2**63), None, generator=self._generator)
        return words.view(torch.uint8)[:count]


class Dropout(nn.Module):
    """Dropout: in training, elements are zeroed at a rate and the rest scaled by 1 / (1 - rate).

    On a CPU one random byte is drawn for each element, so the rate is rounded to a multiple of
    1/256 (0.1 becomes 0.1016), and the scale is that of the rounded rate. PyTorch's own dropout
    draws one number at a time there and took longer than all matrix products of a narrow model.

    Source: Srivastava et al. 2014; Vaswani et al. 2017, section 5.4.
    """

    def __init__(self, rate: float, noise: Noise) -> None:
        super().__init__()
        self.rate = rate
        self._noise = noise

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with some elements zeroed in training, unchanged otherwise; same shape."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return self._noise.dropped(x, self.rate)
        threshold = max(1, min(255, round(self.rate * 256)))
        keep = self._noise.keep(x, threshold)
        return x * keep.mul_(256 / (256 - threshold))


def optional_dropout(rate: float, noise: Noise) -> Dropout | None:
    """Return a dropout, or None at a rate of 0."""
    return Dropout(rate, noise) if rate else None


class WordDropout(nn.Module):
    """Word dropout: in training, the embeddings of some tokens are zeroed as a whole.

    Each token of each segment is dropped by itself, as in Sennrich et al. In Gal and Ghahramani a
    token that is dropped is dropped wherever it occurs in the segment. The embeddings of the other
    tokens are scaled by 1 / (1 - rate), and rates are rounded, as in `Dropout`.

    Source: Gal and Ghahramani 2016, arXiv:1512.05287, section 4; Sennrich et al. 2016, Edinburgh
    Neural Machine Translation Systems for WMT 16, arXiv:1606.02891.
    """

    def __init__(self, rate: float, noise: Noise) -> None:
        super().__init__()
        self._dropout = Dropout(rate, noise)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (B, T, D), with some of them zeroed in training."""
        if not self.training or self._dropout.rate == 0:
            return embeddings
        tokens: Tensor = self._dropout(torch.ones_like(embeddings[..., :1]))  # (B, T, 1)
        return embeddings * tokens


def token_mask(ids: Tensor, rate: float, noise: Noise) -> Tensor:
    """Return a mask (B, T, 1) of ids (B, T): False for a share of `rate` of the tokens.

    Each token is drawn by itself, and rates are rounded, as in `WordDropout`.
    """
    kept: Tensor = Dropout(rate, noise)(torch.ones((*ids.shape, 1), device=ids.device))
    return kept != 0
