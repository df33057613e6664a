"""Activation patching: which source positions carry the difference between two sentences.

Attention weights tell where a head looks, not what follows from it. Here the model is intervened
upon: one vector of the encoder is replaced by the one that the other sentence has there, and the
effect on the next token is measured.

Source: Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262.
"""

# S source tokens, D model width, L encoder layers, N patched sentences in one pass, V vocabulary

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tfm_cli.console import one_line
from tfm_cli.errors import ConfigError
from tfm_cli.model.transformer import Transformer
from tfm_cli.pictures.explanation import Contrast, Tokens
from tfm_cli.tokenizer.tokenizer import Tokenizer

_BATCH = 64  # patched sentences in one pass
_MIN_CHANGE = 1.0  # of the log-odds: a factor of e


def contrast(
    transformer: Transformer,
    target: Tokenizer,
    *,
    ids: tuple[Sequence[int], Sequence[int]],
    sentences: tuple[str, str],
    pieces: tuple[Sequence[str], Sequence[str]],
    target_ids: tuple[Sequence[int], Sequence[int]],
) -> Contrast:
    """Return the effect of each vector of the encoder on the first token that differs.

    Args:
        transformer: the model, in evaluation mode.
        target: its target tokenizer.
        ids: source ids of both sentences, with </s>.
        sentences: their text.
        pieces: their source tokens, with </s>.
        target_ids: ids of their translations, with </s>.

    Raises:
        ConfigError: the sentences have different numbers of tokens, have the same translation, or
            hardly differ in the odds of the first token that does.
    """
    _check_same_length(pieces)
    first, second = (torch.tensor([each]) for each in ids)  # (1, S)
    step = _first_difference(target, target_ids)
    token, other = target_ids[0][step], target_ids[1][step]
    prefix = torch.tensor([[target.start_id, *target_ids[0][:step]]])  # (1, t + 1)

    def log_odds(source_ids: Tensor) -> list[float]:
        """Return log p(token) - log p(other) after the prefix, for source ids (N, S)."""
        memory = transformer.encode(source_ids, None)  # (N, S, D)
        hidden = transformer.decode(prefix.expand(len(memory), -1), memory, None)  # (N, t + 1, D)
        logits = transformer.logits(hidden[:, -1])  # (N, V)
        return (logits[:, token] - logits[:, other]).double().tolist()

    states: dict[int, Tensor] = {}
    with _watching(transformer, states.__setitem__):
        (wanted,) = log_odds(second)
    (own,) = log_odds(first)
    if abs(wanted - own) < _MIN_CHANGE:
        here, there = one_line(target.pieces[token]), one_line(target.pieces[other])
        raise ConfigError(
            f"`--contrast`: the log-odds of `{here}` against `{there}` are {own:.3f} in one "
            f"sentence and {wanted:.3f} in the other: there is no difference to follow",
            hint="choose two sentences whose translations differ clearly",
        )
    patched = [
        [
            value
            for start in range(0, first.shape[1], _BATCH)
            for value in _patched(transformer, first, layer, state, start, log_odds)
        ]
        for layer, state in sorted(states.items())
    ]  # (L + 1, S)
    return Contrast(
        sentence=sentences[1],
        source=Tokens(tuple(pieces[1]), tuple(ids[1])),
        prefix=_text(target, target_ids[0][:step]),
        tokens=Tokens((target.pieces[token], target.pieces[other]), (token, other)),
        log_odds=own,
        other_log_odds=wanted,
        shares=((np.array(patched) - own) / (wanted - own)).astype(np.float32),
    )


def _check_same_length(pieces: tuple[Sequence[str], Sequence[str]]) -> None:
    if len(pieces[0]) != len(pieces[1]):
        shown = " and ".join(f"`{' '.join(map(one_line, each))}`" for each in pieces)
        raise ConfigError(
            f"`--contrast`: {shown} have {len(pieces[0])} and {len(pieces[1])} tokens",
            hint="choose sentences with the same number of tokens, such as two that differ in a "
            "word",
        )


def _first_difference(target: Tokenizer, target_ids: tuple[Sequence[int], Sequence[int]]) -> int:
    """Return the position of the first token in which two translations differ."""
    for position, (one, other) in enumerate(zip(*target_ids, strict=False)):
        if one != other:
            return position
    # Both end with </s>, so neither is the beginning of the other.
    text = one_line(_text(target, target_ids[0][:-1]))
    raise ConfigError(
        f"`--contrast`: both sentences have the same translation, `{text}`",
        hint="choose a sentence that the model translates in another way",
    )


def _patched(
    transformer: Transformer,
    source_ids: Tensor,
    layer: int,
    state: Tensor,
    start: int,
    log_odds: Callable[[Tensor], list[float]],
) -> list[float]:
    """Return the log-odds with one vector replaced, for each position of a batch of them.

    Args:
        transformer: the model.
        source_ids: of the first sentence, (1, S).
        layer: after which a vector is replaced; 0 for the layers' input.
        state: the vectors of the second sentence there, (1, S, D).
        start: the first position of the batch.
        log_odds: of source ids (N, S).
    """
    positions = torch.arange(start, min(start + _BATCH, source_ids.shape[1]))  # (N,)
    rows = torch.arange(len(positions))

    def replace(number: int, x: Tensor) -> Tensor | None:
        if number != layer:
            return None
        x = x.clone()  # (N, S, D)
        x[rows, positions] = state[0, positions]
        return x

    with _watching(transformer, replace):
        return log_odds(source_ids.expand(len(positions), -1))


@contextlib.contextmanager
def _watching(
    transformer: Transformer, see: Callable[[int, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call a function inside the block with what leaves each encoder layer.

    Args:
        transformer: the model.
        see: gets the number of a layer, 0 for the layers' input, and its output (N, S, D); what it
            returns, if anything, replaces the output.
    """

    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        seen = see(0, arguments[0])
        return arguments if seen is None else (seen, *arguments[1:])

    def leave(number: int, _: nn.Module, __: tuple[Any, ...], x: Tensor) -> Tensor | None:
        return see(number, x)

    layers = list(transformer.encoder_layers)
    hooks = [layers[0].register_forward_pre_hook(enter)]
    for number, layer in enumerate(layers, start=1):
        hooks.append(layer.register_forward_hook(functools.partial(leave, number)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode([ids])[0]
