"""The texts of a run: which files, their tokenizer, and their pieces."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfm_cli.config import DataConfig, RunConfig
from tfm_cli.corpus.parallel_text import read_pairs
from tfm_cli.corpus.sample import sample_path
from tfm_cli.corpus.store import PieceStore
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.model_dir import TOKENIZER_FILE
from tfm_cli.tokenizer import Tokenizer, train_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Corpora:
    """All text of a run, ready to be learned from."""

    tokenizer: Tokenizer
    train: PieceStore
    valid: PieceStore | None  # None without validation text
    valid_source: list[str]  # raw lines
    valid_target: list[str]


def load_corpora(config: RunConfig, tokenizer_path: Path | None) -> Corpora:
    """Read, check and encode the training and validation text; learn a tokenizer if need be.

    Args:
        config: names the files; without any, the sample corpus is taken.
        tokenizer_path: a tokenizer that is settled already, as when a run goes on.

    Raises:
        DataError: a file is missing, malformed, misaligned or has no usable pair.
    """
    data = with_sample(config.data)
    if tokenizer_path is None and config.tokenizer.model:
        tokenizer_path = Path(config.tokenizer.model)
        if tokenizer_path.is_dir():
            tokenizer_path = tokenizer_path / TOKENIZER_FILE
    # Validation text is small: what is wrong with it should show before the long reading.
    valid_pairs = list(read_pairs(data.valid_source, data.valid_target))
    if data.valid_source and not valid_pairs:
        raise DataError(f"{', '.join(data.valid_source)}: has no lines")
    if tokenizer_path is None:
        tokenizer = Tokenizer(
            train_tokenizer(
                _both_sides(data), config.tokenizer, seed=config.training.seed, soft_limit=True
            )
        )
        logger.info("tokenizer: learned %d pieces", tokenizer.vocab_size)
    else:
        tokenizer = Tokenizer.load(tokenizer_path)
        logger.info("tokenizer: %s, %d pieces", tokenizer_path, tokenizer.vocab_size)

    train = PieceStore.build(
        read_pairs(data.source, data.target),
        tokenizer,
        max_length=config.data.max_length,
        name=", ".join(data.source),
    )
    counts = "".join(f", {n} dropped: {reason}" for reason, n in sorted(train.dropped.items()) if n)
    logger.info(
        "training text: %d pairs, %d + %d pieces%s",
        len(train),
        train.source.lengths.sum(),
        train.target.lengths.sum(),
        counts,
    )
    valid = None
    if valid_pairs:
        valid = PieceStore.build(
            valid_pairs,
            tokenizer,
            max_length=1 << 20,
            name=", ".join(data.valid_source),
        )
        logger.info("validation text: %d pairs", len(valid))
    return Corpora(
        tokenizer,
        train,
        valid,
        [source for source, _ in valid_pairs],
        [target for _, target in valid_pairs],
    )


def with_sample(data: DataConfig) -> DataConfig:
    """The files as they are, or those of the sample corpus where none is named."""
    if data.source or data.target:
        return data
    if data.valid_source or data.valid_target:
        raise ConfigError("validation text without training text: name `--source` and `--target`")
    return DataConfig(
        source=(sample_path("train.en"),),
        target=(sample_path("train.fr"),),
        valid_source=(sample_path("valid.en"),),
        valid_target=(sample_path("valid.fr"),),
        max_length=data.max_length,
    )


def _both_sides(data: DataConfig) -> Iterator[str]:
    for pair in read_pairs(data.source, data.target):
        yield from pair
