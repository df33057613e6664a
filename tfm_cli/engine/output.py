"""The output layer: logits of all pieces, or the likeliest piece alone for less work."""

# R rows, D model width, V vocabulary, G groups of W pieces, m candidates of all rows together

import math

import torch
from torch import Tensor

from tfm_cli.engine.int8 import LARGEST, columns_of, quantized_rows
from tfm_cli.engine.linear import Linear, output_linear

_GROUP = 64  # pieces
_FEW_ROWS = 4
_DEVIATIONS = 8.0  # more than that off is one logit in 10^15
_TOGETHER = 262_144  # logits that stay in the processor's own memory


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

    def best(self, hidden: Tensor, banned: Tensor) -> Tensor:
        """The ids (R,) of the largest logits of hidden states (R, D), as fp32 has them.

        Args:
            hidden: (R, D).
            banned: ids that are not chosen.
        """
        row, piece = self.prepare_best().candidates(hidden, banned)  # (m,) each
        if len(row) == len(hidden):
            return piece
        exact = (hidden.index_select(0, row) * self._weight.index_select(0, piece)).sum(1)  # (m,)
        if self._bias is not None:
            exact += self._bias.index_select(0, piece)
        best = exact.new_full((len(hidden),), -math.inf).scatter_reduce_(0, row, exact, "amax")
        wins = exact == best.index_select(0, row)
        # Of equal ones the first, as `argmax` does.
        # A row that has no numbers has no candidates, and gets the last.
        found = piece.new_full((len(hidden),), len(self._weight) - 1)
        return found.scatter_reduce_(0, row[wins], piece[wins], "amin")


class _Screen:
    """Finds which pieces can have the largest logit, with a matrix of bytes.

    A quarter of the memory is read and the products are several times as fast. For x = x' + e and
    w = w' + f, rounded parts first, a logit in 8 bits is off by e w + x' f. The errors e and f are
    spread evenly over a step each, so the standard deviation of the sum is known, and pieces
    further below the largest than twice `_DEVIATIONS` of it are not it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        stored, peak = quantized_rows(weight)
        self._columns = columns_of(stored)  # (D, V)
        self._scale = peak[:, 0] / LARGEST**2  # (V,)
        self._bias = bias
        # Of the longest row and the widest step, whose even spread has a variance of 1/12.
        step_deviation = _DEVIATIONS / LARGEST / math.sqrt(12)
        self._longest = float(torch.linalg.vector_norm(weight, dim=1).max()) * step_deviation
        self._widest = float(peak.max()) * step_deviation

    def candidates(self, hidden: Tensor, banned: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and ids, (m,) each, sorted by row; each row has at least one."""
        rows, peak = quantized_rows(hidden)
        error = self._error(hidden, peak)  # (R, 1)
        if len(hidden) <= _FEW_ROWS:
            logits = torch._int_mm(rows, self._columns) * self._scale  # (R, V)
            if self._bias is not None:
                logits.addcdiv_(self._bias, peak)
            logits.index_fill_(1, banned, -math.inf)
            likely = logits >= logits.amax(1, keepdim=True) - 2 * error
            row, piece = likely.nonzero(as_tuple=True)
            return row, piece
        return self._grouped_candidates(rows, peak, error, banned)

    def _grouped_candidates(
        self, rows: Tensor, peak: Tensor, error: Tensor, banned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same for many rows, whose logits do not stay in the processor's own memory.

        Groups of pieces are looked through by their maxima, which are found as the logits come.
        """
        size = len(self._scale)
        groups = -(-size // _GROUP)  # the last one may be smaller
        logits = self._scale.new_empty(len(rows), groups * _GROUP)  # in units of the row's peak
        logits[:, size:] = -math.inf
        maxima = self._scale.new_empty(len(rows), groups)  # (R, G)
        banned_ids = banned.tolist()
        together = max(1, _TOGETHER // len(rows) // _GROUP) * _GROUP
        for start in range(0, size, together):
            end = min(start + together, size)
            part = logits[:, start:end]
            sums = torch._int_mm(rows, self._columns[:, start:end])
            torch.mul(sums, self._scale[start:end], out=part)
            if self._bias is not None:
                part.addcdiv_(self._bias[start:end], peak)
            for piece in banned_ids:
                if start <= piece < end:
                    logits[:, piece] = -math.inf
            first, last = start // _GROUP, -(-end // _GROUP)
            grouped = logits[:, start : last * _GROUP].view(len(rows), -1, _GROUP)
            torch.amax(grouped, dim=2, out=maxima[:, first:last])
        lowest = maxima.amax(1, keepdim=True) - 2 * error  # (R, 1)
        row, group = (maxima >= lowest).nonzero(as_tuple=True)
        members = logits.view(len(rows), groups, _GROUP)[row, group]  # (groups kept, W)
        kept, place = (members >= lowest[row]).nonzero(as_tuple=True)
        return row[kept], group[kept] * _GROUP + place

    def _error(self, hidden: Tensor, peak: Tensor) -> Tensor:
        """How far a logit in 8 bits may be off, (R, 1), in units of the row's peak.

        Not the root of a sum but the sum of roots, which is a little more.
        """
        norm: Tensor = torch.linalg.vector_norm(hidden, dim=1, keepdim=True)  # (R, 1)
        return norm.div_(peak).mul_(self._widest).add_(self._longest)
