"""A model in the hands of Hugging Face's `transformers`."""

# B segments, S source pieces, T target pieces, V vocabulary

import contextlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfm_cli.corpus.batch import make_batch, pad_source
from tfm_cli.errors import ModelError
from tfm_cli.interop.verification.runtime import Ids
from tfm_cli.tokenizer.pair import TokenizerPair


def is_installed() -> bool:
    """Whether `transformers` is there."""
    return importlib.util.find_spec("transformers") is not None


class HuggingFaceRuntime:
    """`MarianMTModel` and `MarianTokenizer` of a directory; special ids are taken from ours.

    Raises:
        ModelError: they do not load it.
    """

    bans_before_softmax = False

    def __init__(self, directory: Path, tokenizers: TokenizerPair) -> None:
        with _quiet() as transformers:
            from huggingface_hub.errors import StrictDataclassError

            self.name = f"transformers {transformers.__version__}"
            try:
                self._model: Any = transformers.MarianMTModel.from_pretrained(
                    directory, local_files_only=True, dtype=torch.float32
                ).eval()
                self._tokenizer: Any = transformers.MarianTokenizer.from_pretrained(
                    directory, local_files_only=True
                )
            except (
                OSError, ValueError, RuntimeError, LookupError, TypeError, StrictDataclassError,
            ) as error:  # fmt: skip
                raise ModelError(f"{self.name} does not load the model: {error}") from error
        self._pair = tokenizers
        self.most_pieces = int(self._model.config.max_position_embeddings) - 2

    def encode(self, lines: Sequence[str]) -> list[Ids]:
        """The ids of each line, without </s>."""
        with _quiet():  # it would advise against long lines
            rows = self._tokenizer(list(lines), add_special_tokens=False)["input_ids"]
        return [tuple(row) for row in rows]

    @torch.inference_mode()
    def differences(
        self, sources: Sequence[Ids], targets: Sequence[Ids], logits: Sequence[Tensor]
    ) -> list[Tensor]:
        """How far its logits are from ours at each piece, all pieces of the vocabulary compared."""
        source, target = self._pair.source, self._pair.target
        batch = make_batch(
            [np.asarray(ids, dtype=np.int64) for ids in sources],
            [np.asarray(ids, dtype=np.int64) for ids in targets],
            start_id=target.start_id,
            eos_id=target.eos_id,
            source_eos_id=source.eos_id,
        )
        found = self._model(
            input_ids=batch.source,
            attention_mask=_attention_mask(batch.source, batch.source_keep),
            decoder_input_ids=batch.target_in,
        ).logits  # (B, T, V)
        return [
            (found[row, : len(wanted)] - wanted).abs().amax(dim=1)
            for row, wanted in enumerate(logits)
        ]

    @torch.inference_mode()
    def search(self, sources: Sequence[Ids], *, beam_size: int, limit: int) -> list[Ids]:
        """The best translation of each segment, as `generate` finds it."""
        target = self._pair.target
        padded, keep = pad_source([list(ids) for ids in sources], self._pair.source.eos_id)
        options: dict[str, Any] = {
            "max_length": limit + 2,  # the start and </s>
            "do_sample": False,
            "num_beams": beam_size,
            "decoder_start_token_id": target.start_id,
            "eos_token_id": target.eos_id,
            "pad_token_id": target.eos_id,
        }
        if beam_size > 1:
            options |= {"length_penalty": 1.0, "early_stopping": True}
        if target.banned_ids:
            options["bad_words_ids"] = [[banned] for banned in target.banned_ids]
        with _quiet() as transformers:
            config = transformers.GenerationConfig(**options)
            self._model.generation_config = config  # what is not said here would be taken from it
            rows = self._model.generate(
                input_ids=padded,
                attention_mask=_attention_mask(padded, keep),
                generation_config=config,
            ).tolist()
        return [_until(row[1:], target.eos_id) for row in rows]


def _until(ids: list[int], eos_id: int) -> Ids:
    return tuple(ids[: ids.index(eos_id)] if eos_id in ids else ids)


def _attention_mask(source: Tensor, keep: Tensor | None) -> Tensor:
    """1 where a piece is real, (B, S)."""
    return torch.ones_like(source) if keep is None else keep[:, 0, 0].long()


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """`transformers`, with what it has to say unheard: progress bars, advice, deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # By this way it comes without types: only some of it has them.
        transformers: Any = importlib.import_module("transformers")
        theirs = transformers.utils.logging
        level, had_bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
        theirs.set_verbosity(logging.CRITICAL)
        theirs.disable_progress_bar()
        try:
            yield transformers
        finally:
            theirs.set_verbosity(level)
            if had_bars:
                theirs.enable_progress_bar()
