"""Other programs that run a model for verification: `transformers` and CTranslate2."""

# B segments, S source tokens, T target tokens with </s>, V vocabulary

import contextlib
import importlib
import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tfm_cli.corpus.batch import Batch, make_batch, pad_source
from tfm_cli.errors import ModelError
from tfm_cli.tokenizer.pair import TokenizerPair

Ids = tuple[int, ...]


class Runtime(Protocol):
    """A model that is run by another program; ids are tfm's, without </s>."""

    @property
    def name(self) -> str:
        """Return the program and its version."""

    @property
    def bans_before_softmax(self) -> bool:
        """Return True if the softmax excludes banned tokens, False if it includes them."""

    @property
    def max_tokens(self) -> int:
        """Return the maximum tokens of a source or a target that the positions allow."""

    def encode(self, lines: Sequence[str]) -> list[Ids] | None:
        """Return the ids of each line; None if the program takes tokens instead of text."""

    def differences(
        self, sources: Sequence[Ids], targets: Sequence[Ids], logits: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the difference to tfm's logits for given targets, (T,) for each segment.

        Args:
            sources: segments, computed as one padded batch.
            targets: a target for each of them.
            logits: tfm's, (T, V) for each segment.
        """

    def search(self, sources: Sequence[Ids], *, beam_size: int, limit: int) -> list[Ids]:
        """Return the best translation of each segment, of at most about `limit` tokens.

        Scores are divided by the number of tokens with </s>, and the search stops once `beam_size`
        hypotheses are finished.
        """


def is_installed(package: str) -> bool:
    """Return True if a package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def padded_batch(
    tokenizers: TokenizerPair, sources: Sequence[Ids], targets: Sequence[Ids]
) -> Batch:
    """Return segments and their targets as one padded batch, with </s> and the start token."""
    return make_batch(
        [np.asarray(ids, dtype=np.int64) for ids in sources],
        [np.asarray(ids, dtype=np.int64) for ids in targets],
        start_id=tokenizers.target.start_id,
        eos_id=tokenizers.target.eos_id,
        source_eos_id=tokenizers.source.eos_id,
    )


class HuggingFaceRuntime:
    """`MarianMTModel` and `MarianTokenizer` of a directory.

    Args:
        directory: a model of Hugging Face from any source.
        tokenizers: of the model in tfm, which define the special ids.

    Raises:
        ModelError: `transformers` cannot load it.
    """

    bans_before_softmax = False

    def __init__(self, directory: Path, tokenizers: TokenizerPair) -> None:
        with _quiet_transformers() as transformers:
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
        self.max_tokens = int(self._model.config.max_position_embeddings) - 2

    def encode(self, lines: Sequence[str]) -> list[Ids]:
        """Return the ids of each line, without </s>."""
        with _quiet_transformers():  # otherwise it warns of long lines
            rows = self._tokenizer(list(lines), add_special_tokens=False)["input_ids"]
        return [tuple(row) for row in rows]

    @torch.inference_mode()
    def differences(
        self, sources: Sequence[Ids], targets: Sequence[Ids], logits: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the largest difference to tfm's logits over the vocabulary, at each token."""
        batch = padded_batch(self._pair, sources, targets)
        actual = self._model(
            input_ids=batch.source,
            attention_mask=_attention_mask(batch.source, batch.source_keep),
            decoder_input_ids=batch.target_in,
        ).logits  # (B, T, V)
        return [
            (actual[row, : len(expected)] - expected).abs().amax(dim=1)
            for row, expected in enumerate(logits)
        ]

    @torch.inference_mode()
    def search(self, sources: Sequence[Ids], *, beam_size: int, limit: int) -> list[Ids]:
        """Return the best translation of each segment by `generate`."""
        target = self._pair.target
        padded, keep = pad_source([list(ids) for ids in sources], self._pair.source.eos_id)
        options: dict[str, Any] = {
            "max_length": limit + 2,  # the start token and </s>
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
        with _quiet_transformers() as transformers:
            config = transformers.GenerationConfig(**options)
            self._model.generation_config = config  # the defaults of options that are not given
            rows = self._model.generate(
                input_ids=padded,
                attention_mask=_attention_mask(padded, keep),
                generation_config=config,
            ).tolist()
        return [_until(row[1:], target.eos_id) for row in rows]


def _until(ids: list[int], eos_id: int) -> Ids:
    return tuple(ids[: ids.index(eos_id)] if eos_id in ids else ids)


def _attention_mask(source: Tensor, keep: Tensor | None) -> Tensor:
    """Return 1 for each token and 0 for padding, (B, S)."""
    return torch.ones_like(source) if keep is None else keep[:, 0, 0].long()


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[Any]:
    """Import `transformers` and suppress its progress bars, advice and deprecation warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Imported as untyped, since only parts of it have types.
        transformers: Any = importlib.import_module("transformers")
        logs = transformers.utils.logging
        level, had_bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
        logs.set_verbosity(logging.CRITICAL)
        logs.disable_progress_bar()
        try:
            yield transformers
        finally:
            logs.set_verbosity(level)
            if had_bars:
                logs.enable_progress_bar()


class CTranslate2Runtime:
    """CTranslate2's `Translator` of a directory, on the CPU.

    Args:
        directory: an export for CTranslate2.
        tokenizers: of the model that was exported.
        max_tokens: the maximum tokens of a segment that the positions allow.
        compute_type: `float32` to compare values closely; `default` to compute in the type of the
            weights.

    Raises:
        ModelError: CTranslate2 cannot load it.
    """

    bans_before_softmax = True

    def __init__(
        self,
        directory: Path,
        tokenizers: TokenizerPair,
        *,
        max_tokens: int,
        compute_type: str = "float32",
    ) -> None:
        import ctranslate2

        self.name = f"CTranslate2 {ctranslate2.__version__}"
        self.max_tokens = max_tokens
        self._pair = tokenizers
        try:
            with _quiet_ctranslate2():
                self._translator: Any = ctranslate2.Translator(
                    str(directory),
                    device="cpu",
                    compute_type=compute_type,
                    intra_threads=torch.get_num_threads(),
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{self.name} does not load the model: {error}") from error

    def encode(self, lines: Sequence[str]) -> None:
        """Return None, since CTranslate2 takes tokens."""

    def differences(
        self, sources: Sequence[Ids], targets: Sequence[Ids], logits: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the difference to tfm's log-probability of each given token, including </s>.

        CTranslate2 returns no other values, but all logits are in the divisor of the softmax.
        """
        eos_id, banned = self._pair.target.eos_id, list(self._pair.target.banned_ids)
        results = self._translator.score_batch(
            self._source_pieces(sources), self._target_pieces(targets), max_input_length=0
        )
        differences = []
        for result, target, ours in zip(results, targets, logits, strict=True):
            allowed = ours.index_fill(1, torch.tensor(banned, dtype=torch.long), -math.inf)
            tokens = torch.tensor([*target, eos_id])  # (T,)
            expected = allowed.log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]  # (T,)
            differences.append((torch.tensor(result.log_probs) - expected).abs())
        return differences

    def search(self, sources: Sequence[Ids], *, beam_size: int, limit: int) -> list[Ids]:
        """Return the best translation of each segment by `translate_batch`."""
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
def _quiet_ctranslate2() -> Iterator[None]:
    """Suppress CTranslate2's advice on the best types for this machine."""
    import ctranslate2

    level = ctranslate2.get_log_level()
    ctranslate2.set_log_level(logging.ERROR)
    try:
        yield
    finally:
        ctranslate2.set_log_level(level)
