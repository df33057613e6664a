"""How hypotheses of different lengths are compared, and how long they may be."""


def length_norm(num_pieces: int, alpha: float, kind: str = "power") -> float:
    """Divisor for a hypothesis' log-probability, which falls with each piece.

    Args:
        num_pieces: n, pieces including </s>, at least 1.
        alpha: 0 leaves scores as they are; 0.6–1.0 is usual.
        kind: `power` for n ** alpha, what most toolkits do; `wu` for ((5 + n) / 6) ** alpha.

    Source: Wu et al. 2016, arXiv:1609.08144, equation 14, for `wu`.
    """
    base = (5 + num_pieces) / 6 if kind == "wu" else num_pieces
    return float(base**alpha)


def output_limit(source_pieces: int, factor: float) -> int:
    """Most pieces, without </s>, of a translation: `factor` for each source piece, plus 10.

    A model that has fallen into a loop stops there.
    """
    return int(source_pieces * factor) + 10
