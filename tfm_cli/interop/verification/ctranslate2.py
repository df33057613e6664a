"""A model in the hands of CTranslate2."""

# T target pieces with </s>, V vocabulary

import contextlib
import importlib.util
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm_cli.errors import ModelError
from tfm_cli.interop.verification.runtime import Ids
from tfm_cli.tokenizer.pair import TokenizerPair


def is_installed() -> bool:
    """Whether `ctranslate2` is there."""
    return importlib.util.find_spec("ctranslate2") is not None


class CTranslate2Runtime:
    """A `Translator` of a directory, on the CPU.

    Args:
        directory: what an export wrote.
        tokenizers: of the model that was exported.
        most_pieces: longest segment that there are positions for.
        compute_type: `float32` to compare numbers; `default` for what the weights are.

    Raises:
        ModelError: CTranslate2 does not load it.
    """

    bans_before_softmax = True

    def __init__(
        self,
        directory: Path,
        tokenizers: TokenizerPair,
        *,
        most_pieces: int,
        compute_type: str = "float32",
    ) -> None:
        import ctranslate2

        self.name = f"CTranslate2 {ctranslate2.__version__}"
        self.most_pieces = most_pieces
        self._pair = tokenizers
        try:
            with _quiet():
                self._translator: Any = ctranslate2.Translator(
                    str(directory),
                    device="cpu",
                    compute_type=compute_type,
                    intra_threads=torch.get_num_threads(),
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{self.name} does not load the model: {error}") from error

    def encode(self, lines: Sequence[str]) -> None:
        """Nothing: CTranslate2 is given pieces."""

    def differences(
        self, sources: Sequence[Ids], targets: Sequence[Ids], logits: Sequence[Tensor]
    ) -> list[Tensor]:
        """How far its log-probability of each given piece is from ours, </s> included.

        It tells no other logits, but they all are in the divisor of the softmax.
        """
        eos_id, banned = self._pair.target.eos_id, list(self._pair.target.banned_ids)
        results = self._translator.score_batch(
            self._source_pieces(sources), self._target_pieces(targets), max_input_length=0
        )
        differences = []
        for result, target, ours in zip(results, targets, logits, strict=True):
            allowed = ours.index_fill(1, torch.tensor(banned, dtype=torch.long), -math.inf)
            pieces = torch.tensor([*target, eos_id])  # (T,)
            wanted = allowed.log_softmax(dim=1).gather(1, pieces[:, None])[:, 0]  # (T,)
            differences.append((torch.tensor(result.log_probs) - wanted).abs())
        return differences

    def search(self, sources: Sequence[Ids], *, beam_size: int, limit: int) -> list[Ids]:
        """The best translation of each segment, as `translate_batch` finds it."""
        results = self._translator.translate_batch(
            self._source_pieces(sources),
            beam_size=beam_size,
            length_penalty=1,
            max_decoding_length=limit + 1,  # </s>
            min_decoding_length=0,
            max_input_length=0,
        )
        target = self._pair.target
        return [tuple(target.piece_ids(result.hypotheses[0])) for result in results]

    def _source_pieces(self, sources: Sequence[Ids]) -> list[list[str]]:
        return [[self._pair.source.pieces[index] for index in ids] for ids in sources]

    def _target_pieces(self, targets: Sequence[Ids]) -> list[list[str]]:
        return [[self._pair.target.pieces[index] for index in ids] for ids in targets]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its advice on the types that this machine computes best with."""
    import ctranslate2

    level = ctranslate2.get_log_level()
    ctranslate2.set_log_level(logging.ERROR)
    try:
        yield
    finally:
        ctranslate2.set_log_level(level)
