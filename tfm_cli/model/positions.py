"""Position encodings: sinusoidal, learned and rotary."""

import torch
from torch import Tensor, nn

# B segments, T tokens, D model width, H heads, E = D // H


def embedding(count: int, width: int) -> nn.Embedding:
    """Return an `nn.Embedding`; on the meta device it is not initialized.

    To initialize it there, PyTorch would import its compiler, which takes seconds.
    """
    if torch.get_default_device().type == "meta":
        return nn.Embedding(count, width, _weight=torch.empty(count, width))
    return nn.Embedding(count, width)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return position encodings (T, width) for integer positions (T,).

    PE(pos, 2i) = sin(pos / 10000^(2i/width)) and PE(pos, 2i+1) is its cosine. They are computed in
    double precision, since sin and cos of large angles lose digits in single.

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
    """Return the encodings of `sinusoids`, (T, width), with all sines before all cosines.

    This is the layout of `MarianMTModel` of Hugging Face and of CTranslate2.
    """
    angles = _angles(positions, width)  # (T, ceil(width / 2))
    return torch.cat((angles.sin(), angles.cos()[:, : width // 2]), dim=1).float()


def marian_sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return position encodings (T, width), width even, as in Marian and Tensor2Tensor.

    All sines come before all cosines, and the largest wavelength is exactly 2 pi * 10000: the angle
    is pos / 10000^(i / (width/2 - 1)); in the paper it is pos / 10000^(i / (width/2)).

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
    """Sinusoids added to embeddings, for sequences of any length.

    Args:
        width: of the embeddings.
        layout: `sinusoidal` as in the paper, `halves` for `sinusoids_in_halves`, or `marian` for
            `marian_sinusoids`.
    """

    def __init__(self, width: int, *, layout: str = "sinusoidal") -> None:
        super().__init__()
        if layout == "marian" and width % 2:
            raise ValueError(f"Marian's sinusoids need an even width, got {width}")
        self._width = width
        self._sinusoids = _LAYOUTS[layout]
        self._table = torch.empty(0, width)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Return `x` (B, T, D) plus the encodings of positions start … start + T - 1."""
        return x + self.table(start + x.shape[1], x.device)[start:]

    def table(self, length: int, device: torch.device | None = None) -> Tensor:
        """Return the encodings of the first `length` positions, (length, D)."""
        if self._table.shape[0] < length or self._table.device != device:
            # Twice the length, so that decoding step by step seldom computes a new table.
            positions = torch.arange(max(256, 2 * length), device=device)
            self._table = self._sinusoids(positions, self._width)  # (max(256, 2 * length), D)
        return self._table[:length]


class LearnedPositions(nn.Module):
    """Learned vectors added to embeddings, for sequences of bounded length."""

    def __init__(self, width: int, max_positions: int) -> None:
        super().__init__()
        self.embedding = embedding(max_positions, width)

    def reset_parameters(self) -> None:
        """Apply normal initialization with a standard deviation of 0.02.

        Scaled embeddings have unit variance. Position vectors of unit variance gave a validation
        loss of 3.97, and these 3.76, measured as for `INITIAL_GAIN`.
        """
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Return `x` (B, T, D) plus the vectors of positions start … start + T - 1.

        Raises:
            ValueError: the segment has more tokens than the model has positions.
        """
        end, limit = start + x.shape[1], self.embedding.num_embeddings
        if end > limit:
            raise ValueError(f"the model has {limit} learned positions, the segment needs {end}")
        return x + self.embedding.weight[start:end]


class RotaryPositions(nn.Module):
    """Rotary positions: queries and keys are rotated by an angle proportional to their position.

    The dot product of a query and a key then depends on their positions only by the distance.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
    """

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Return `x` (B, H, T, E), E even, rotated for positions start … start + T - 1."""
        positions = torch.arange(start, start + x.shape[2], device=x.device)
        return rotate(x, *rotations(positions, x.shape[3]))


def rotations(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the angles of positions (T,), (T, E / 2) each, in double."""
    angles = _angles(positions, width)  # (T, E / 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` (B, H, T, E) with each pair of even and odd elements rotated by its angle."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # (T, E / 2) each
    even, odd = x[..., 0::2], x[..., 1::2]  # (B, H, T, E / 2) each
    both = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return both.flatten(-2)  # (B, H, T, E)
