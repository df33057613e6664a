"""Where a piece stands: sinusoidal, learned and rotary position encodings."""

# B segments, T pieces, D model width, H heads, E = D // H

import torch
from torch import Tensor, nn


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


class SinusoidalPositions(nn.Module):
    """Adds the sinusoid of its position to each embedding; any length works."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self._table = torch.empty(0, width)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """`x` (B, T, D) plus the encodings of positions start … start + T - 1."""
        end = start + x.shape[1]
        if self._table.shape[0] < end or self._table.device != x.device:
            # Made anew at twice the length, so that decoding step by step seldom comes here.
            positions = torch.arange(max(256, 2 * end), device=x.device)
            self._table = sinusoids(positions, self._width)  # (2 * end, D)
        return x + self._table[start:end]


class LearnedPositions(nn.Module):
    """Adds a learned vector for its position to each embedding; lengths are bounded."""

    def __init__(self, width: int, max_positions: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_positions, width)

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
        angles = _angles(positions, x.shape[3])  # (T, E / 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        even, odd = x[..., 0::2], x[..., 1::2]  # (B, H, T, E / 2) each
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return turned.flatten(-2)  # (B, H, T, E)
