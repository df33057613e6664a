"""Where a piece stands: sinusoidal, learned and rotary position encodings."""

import torch
from torch import Tensor, nn

# Embeddings that can be made without values.


def embedding(count: int, width: int) -> nn.Embedding:
    """`nn.Embedding`; on the meta device without drawing values, for which it has no room.

    PyTorch would load its compiler to draw them there, which takes seconds.
    """
    if torch.get_default_device().type == "meta":
        return nn.Embedding(count, width, _weight=torch.empty(count, width))
    return nn.Embedding(count, width)


# B segments, T pieces, D model width, H heads, E = D // H


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Position encodings, shape (T, width), for integer positions, shape (T,).

    PE(pos, 2i) = sin(pos / 10000^(2i/width)) and PE(pos, 2i+1) is its cosine. Computed in double,
    since sin and cos of large angles lose digits in single.

    Source: Vaswani et al. 2017, section 3.5.
    """
    angles = _angles(positions, width)  # (T, ceil(width / 2))
    encoding = torch.empty(len(positions), width, dtype=torch.float64, device=positions.device)
    encoding[:, 0::2] = angles.sin()
    encoding[:, 1::2] = angles.cos()[:, : width // 2]
    return encoding.float()


def _angles(positions: Tensor, width: int) -> Tensor:
    even = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)  # 2i
    return positions.double()[:, None] / 10000 ** (even / width)  # (T, ceil(width / 2))


def sinusoids_in_halves(positions: Tensor, width: int) -> Tensor:
    """The same sinusoids, (T, width), but all sines stand before all cosines.

    The layout of `MarianMTModel` of Hugging Face and of CTranslate2.
    """
    angles = _angles(positions, width)  # (T, ceil(width / 2))
    return torch.cat((angles.sin(), angles.cos()[:, : width // 2]), dim=1).float()


def marian_sinusoids(positions: Tensor, width: int) -> Tensor:
    """Position encodings (T, width), width even, as Marian itself and Tensor2Tensor compute them.

    Sines stand before cosines, and the wavelengths reach 10000 itself: the angle is
    pos / 10000^(i / (width/2 - 1)) where the paper has pos / 10000^(i / (width/2)).

    Source: Marian 1.12, `sinusoidalPositionEmbeddings`.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device=positions.device) / max(half - 1, 1)
    angles = positions.double()[:, None] / 10000**steps  # (T, width / 2)
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()


_LAYOUTS = {
    "sinusoidal": sinusoids,
    "halves": sinusoids_in_halves,
    "marian": marian_sinusoids,
}


class SinusoidalPositions(nn.Module):
    """Adds the sinusoid of its position to each embedding; any length works.

    Args:
        width: of the embeddings.
        layout: `sinusoidal` as in the paper, `halves` or `marian`, as the functions above say.
    """

    def __init__(self, width: int, *, layout: str = "sinusoidal") -> None:
        super().__init__()
        if layout == "marian" and width % 2:
            raise ValueError(f"Marian's sinusoids need an even width, got {width}")
        self._width = width
        self._sinusoids = _LAYOUTS[layout]
        self._table = torch.empty(0, width)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """`x` (B, T, D) plus the encodings of positions start … start + T - 1."""
        return x + self.table(start + x.shape[1], x.device)[start:]

    def table(self, length: int, device: torch.device | None = None) -> Tensor:
        """The encodings of the first `length` positions, (length, D)."""
        if self._table.shape[0] < length or self._table.device != device:
            # Made anew at twice the length, so that decoding step by step seldom comes here.
            positions = torch.arange(max(256, 2 * length), device=device)
            self._table = self._sinusoids(positions, self._width)  # (2 * length, D)
        return self._table[:length]


class LearnedPositions(nn.Module):
    """Adds a learned vector for its position to each embedding; lengths are bounded."""

    def __init__(self, width: int, max_positions: int) -> None:
        super().__init__()
        self.embedding = embedding(max_positions, width)

    def reset_parameters(self) -> None:
        """Normal initialisation, narrow beside the unit width of scaled embeddings.

        Measured as for `INITIAL_GAIN`: a loss of 3.76 with it and 3.97 with unit width.
        """
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """`x` (B, T, D) plus the vectors of positions start … start + T - 1.

        Raises:
            ValueError: the segment is longer than the model has positions for.
        """
        end, limit = start + x.shape[1], self.embedding.num_embeddings
        if end > limit:
            raise ValueError(f"the model has {limit} learned positions, the segment needs {end}")
        return x + self.embedding.weight[start:end]


class RotaryPositions(nn.Module):
    """Turns queries and keys by an angle that grows with their position.

    The product of a query and a key then depends on their distance alone.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
    """

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """`x` (B, H, T, E), turned for the positions start … start + T - 1; E is even."""
        positions = torch.arange(start, start + x.shape[2], device=x.device)
        return turned(x, *rotations(positions, x.shape[3]))


def rotations(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (T, E / 2) each and in double, of the angles for positions (T,)."""
    angles = _angles(positions, width)  # (T, E / 2)
    return angles.cos(), angles.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` (B, H, T, E), its even elements and the odd ones behind them turned by angles."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # (T, E / 2) each
    even, odd = x[..., 0::2], x[..., 1::2]  # (B, H, T, E / 2) each
    both = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return both.flatten(-2)  # (B, H, T, E)
