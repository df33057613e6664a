"""Batches within a token budget, without NumPy, which translation does not import."""

from collections.abc import Sequence


def token_batches(
    source_lengths: Sequence[int], target_lengths: Sequence[int], *, max_tokens: int
) -> list[slice]:
    """Return slices of consecutive pairs, each a batch within the token budget.

    Args:
        source_lengths: tokens of each source, including </s>.
        target_lengths: the same for the targets.
        max_tokens: target tokens of a batch, including padding. The padded source may have twice
            as many. A single pair beyond that is a batch of its own.
    """
    batches = []
    start, widest_source, widest_target = 0, 0, 0
    for end, (source, target) in enumerate(zip(source_lengths, target_lengths, strict=True)):
        widest_source, widest_target = max(widest_source, source), max(widest_target, target)
        size = end - start + 1
        if size > 1 and (
            size * widest_target > max_tokens or size * widest_source > 2 * max_tokens
        ):
            batches.append(slice(start, end))
            start, widest_source, widest_target = end, source, target
    if source_lengths:
        batches.append(slice(start, len(source_lengths)))
    return batches
