"""Length normalization of scores, and the maximum length of a translation."""


def length_norm(num_tokens: int, alpha: float, kind: str = "power") -> float:
    """Return the divisor of a hypothesis' log-probability.

    Args:
        num_tokens: n, tokens including </s>, at least 1.
        alpha: 0 leaves scores as they are; 0.6–1.0 is usual.
        kind: `power` for n ** alpha, as in most toolkits; `wu` for ((5 + n) / 6) ** alpha.

    Source: Wu et al. 2016, arXiv:1609.08144, equation 14, for `wu`.
    """
    base = (5 + num_tokens) / 6 if kind == "wu" else num_tokens
    return float(base**alpha)


def output_limit(source_tokens: int, factor: float) -> int:
    """Return the maximum number of tokens of a translation, without </s>.

    It is `factor` for each source token, plus 10. It also ends output that repeats endlessly.
    """
    return int(source_tokens * factor) + 10
