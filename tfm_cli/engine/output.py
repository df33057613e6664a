"""The output layer: logits of all pieces, or the likeliest piece alone for less work."""

# R rows, D model width, V vocabulary, G groups of W pieces, m candidates of all rows together

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tfm_cli.decoding.hypothesis import NonFiniteScoresError
from tfm_cli.engine.int8 import LARGEST, int8_linear
from tfm_cli.engine.linear import Linear, output_linear

_GROUP = 64  # pieces
_FEW_ROWS = 4
_DEVIATIONS = 8.0  # more than that off is one logit in 10^15
_SMALLEST_PEAK = LARGEST * 2**-14  # FBGEMM takes no smaller steps than 6.1e-5


class OutputLayer:
    """Logits of hidden states.

    Args:
        weight: (V, D), fp32.
        bias: (V,); None for none.
        precision: of `logits`: `fp32`, `bf16` or `int8`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: str) -> None:
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach()
        self._precision = precision
        self._logits: Linear | None = None
        self._screen: _Screen | None = None

    def restricted(self, ids: Tensor) -> "OutputLayer":
        """The same for these ids (U,) alone."""
        bias = None if self._bias is None else self._bias[ids]
        return OutputLayer(self._weight[ids], bias, self._precision)

    def prepare_logits(self) -> Linear:
        """Make `logits` ready, which costs the memory of a matrix."""
        if self._logits is None:
            size, bias = len(self._weight), self._bias
            added = self._weight.new_zeros(size) if bias is None else bias
            self._logits = output_linear(self._weight, added, self._precision)
        return self._logits

    def prepare_best(self) -> "_Screen":
        """Make `best` ready, which costs some memory."""
        self._screen = self._screen or _Screen(self._weight, self._bias)
        return self._screen

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, V) of hidden states (R, D)."""
        return self.prepare_logits()(hidden)

    def exact_logits(self, hidden: Tensor) -> Tensor:
        """(R, V) of hidden states (R, D) in fp32, whatever the precision of `logits`."""
        return F.linear(hidden, self._weight, self._bias)

    def best(self, hidden: Tensor, banned: Tensor) -> Tensor:
        """The ids (R,) of the largest logits of hidden states (R, D), as fp32 has them.

        Args:
            hidden: (R, D).
            banned: ids that are not chosen.

        Raises:
            NonFiniteScoresError: a hidden state or the largest logit is not finite.
        """
        screen = self.prepare_best()
        if not math.isfinite(float(torch.linalg.vector_norm(hidden, math.inf))):
            raise NonFiniteScoresError
        if len(hidden) == 1:
            return self._best_of_one(hidden[0], screen.candidates_of_one(hidden, banned))
        row, piece = screen.candidates(hidden, banned)  # (m,) each
        if len(row) == len(hidden):
            return piece
        exact = (hidden.index_select(0, row) * self._weight.index_select(0, piece)).sum(1)  # (m,)
        if self._bias is not None:
            exact += self._bias.index_select(0, piece)
        best = exact.new_full((len(hidden),), -math.inf).scatter_reduce_(0, row, exact, "amax")
        wins = exact == best.index_select(0, row)
        if not bool(best.isfinite().all()):  # also of a row without candidates
            raise NonFiniteScoresError
        # Of equal ones the first, as `argmax` does.
        found = piece.new_full((len(hidden),), len(self._weight) - 1)
        return found.scatter_reduce_(0, row[wins], piece[wins], "amin")

    def _best_of_one(self, hidden: Tensor, pieces: Tensor) -> Tensor:
        """The same for a single state (D,), among these pieces (m,); in fewer operators."""
        if len(pieces) == 1:
            return pieces
        if not len(pieces):
            raise NonFiniteScoresError
        exact = torch.mv(self._weight.index_select(0, pieces), hidden)  # (m,)
        if self._bias is not None:
            exact += self._bias.index_select(0, pieces)
        if not bool(exact.isfinite().all()):
            raise NonFiniteScoresError
        return pieces.index_select(0, exact.argmax(0, keepdim=True))


class _Screen:
    """Finds which pieces can have the largest logit, with a matrix of bytes.

    A quarter of the memory is read and the products are several times as fast. For x = x' + e and
    w = w' + f, rounded parts first, a logit in 8 bits is off by e w + x' f. The errors e and f are
    spread evenly over a step each, so the standard deviation of the sum is known, and pieces
    further below the largest than twice `_DEVIATIONS` of it are not it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        size, inputs = weight.shape
        added = weight.new_zeros(size) if bias is None else bias
        # Whole groups; what was added to the last one is never the largest.
        missing = -size % _GROUP
        whole = weight
        if missing:
            whole = torch.cat((weight, weight.new_zeros(missing, inputs)))
            added = torch.cat((added, added.new_full((missing,), -math.inf)))
        self._logits = int8_linear(whole, added)
        # Of the longest row and the widest step, whose even spread has a variance of 1/12.
        step_deviation = _DEVIATIONS / LARGEST / math.sqrt(12)
        self._longest = float(torch.linalg.vector_norm(weight, dim=1).max()) * step_deviation
        lowest, highest = torch.aminmax(weight)
        self._widest = max(-float(lowest), float(highest)) * step_deviation

    def candidates(self, hidden: Tensor, banned: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and ids, (m,) each, sorted by row; each row has at least one."""
        logits = self._logits(hidden)  # (R, V')
        logits.index_fill_(1, banned, -math.inf)
        if len(hidden) <= _FEW_ROWS:  # which stay in the processor's own memory
            lowest = logits.amax(1, keepdim=True) - 2 * self._error(hidden)  # (R, 1)
            row, piece = (logits >= lowest).nonzero(as_tuple=True)
            return row, piece
        # Groups of pieces are looked through by their maxima.
        grouped = logits.view(len(hidden), -1, _GROUP)  # (R, G, W)
        maxima = grouped.amax(2)  # (R, G)
        lowest = maxima.amax(1, keepdim=True) - 2 * self._error(hidden)  # (R, 1)
        row, group = (maxima >= lowest).nonzero(as_tuple=True)
        members = grouped[row, group]  # (groups kept, W)
        kept, place = (members >= lowest[row]).nonzero(as_tuple=True)
        return row[kept], group[kept] * _GROUP + place

    def candidates_of_one(self, hidden: Tensor, banned: Tensor) -> Tensor:
        """The same for a single row: ids (m,)."""
        logits = self._logits(hidden)[0]  # (V',)
        logits.index_fill_(0, banned, -math.inf)
        largest = max(_SMALLEST_PEAK, float(torch.linalg.vector_norm(hidden, math.inf)))
        error = float(torch.linalg.vector_norm(hidden)) * self._widest + largest * self._longest
        likely = logits >= float(logits.max()) - 2 * error
        return likely.nonzero()[:, 0]

    def _error(self, hidden: Tensor) -> Tensor:
        """How far a logit in 8 bits may be off, (R, 1).

        Not the root of a sum but the sum of roots, which is a little more. A step of the hidden
        states is at most the largest of them all by 127, or the least there is.
        """
        norm: Tensor = torch.linalg.vector_norm(hidden, dim=1, keepdim=True)  # (R, 1)
        largest = hidden.abs().amax().clamp_min(_SMALLEST_PEAK)
        return norm.mul_(self._widest).add_(largest * self._longest)
