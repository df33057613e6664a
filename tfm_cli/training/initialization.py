"""What a run begins with: tokenizers and weights that exist, fresh weights, the text it knew."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from tfm_cli.config.settings import ModelConfig, RunConfig
from tfm_cli.errors import ConfigError
from tfm_cli.evaluation.bleu_tokenizer import DEFAULT_TOKENIZER, check_available, choose_tokenizer
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.config_file import load_config, load_tokenizers
from tfm_cli.model_directory.weights import build_transformer, load_model
from tfm_cli.parallel import Parallel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.training.memory import resolve_batch_size

logger = logging.getLogger(__name__)


def load_initial_parts(
    config: RunConfig, output: Path, *, resume: bool
) -> tuple[TokenizerPair | None, Transformer | None]:
    """Tokenizers and weights that are settled before any text is read."""
    if resume:
        began = load_config(output)
        _check_same_batches(output, began.settings, config)
        return load_tokenizers(output, began), None
    if not config.training.pretrained_model:
        return None, None
    directory = Path(config.training.pretrained_model)
    pretrained = load_model(directory, torch.device("cpu"))
    _check_same_shape(directory, pretrained.config.model, config.model)
    model = build_transformer(config.model, pretrained.tokenizers.vocab_sizes)
    model.load_state_dict(pretrained.transformer.state_dict())
    logger.info("starting from the weights and the tokenizers of `%s`", directory)
    return pretrained.tokenizers, model


def with_bleu_tokenizer(
    config: RunConfig,
    output: Path,
    references: Sequence[str],
    *,
    resume: bool,
    parallel: Parallel,
) -> RunConfig:
    """Return the settings with BLEU's tokenizer decided: as the run began, or by the references.

    Args:
        config: all settings.
        output: of the run; rank 0 alone reads it.
        references: of the validation text; without any, nothing is decided.
        resume: whether the run is resumed.
        parallel: the processes, which all get the same.

    Raises:
        ResourceError: this machine lacks a package or a file that the tokenizer needs.
    """
    chosen = config.validation.tokenize
    if parallel.is_main and resume:
        chosen = load_config(output).settings.validation.tokenize
    if chosen == "auto" and references:
        chosen, reason = choose_tokenizer(references)
        if chosen != DEFAULT_TOKENIZER and "bleu" in config.validation.metrics:
            logger.info("BLEU's tokenizer: %s, since %s (`validation.tokenize`)", chosen, reason)
    chosen = parallel.broadcast_bytes(chosen.encode()).decode()
    if references and "bleu" in config.validation.metrics:
        check_available(chosen)  # a run may be resumed on another machine
    validation = dataclasses.replace(config.validation, tokenize=chosen)
    return dataclasses.replace(config, validation=validation)


def initialize_model(config: RunConfig, tokenizers: TokenizerPair) -> Transformer:
    """A model with weights that are drawn by the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return build_transformer(config.model, tokenizers.vocab_sizes)


def _check_same_shape(directory: Path, found: ModelConfig, wanted: ModelConfig) -> None:
    changes = [
        f"model.{field.name}: {getattr(found, field.name)} → {getattr(wanted, field.name)}"
        for field in dataclasses.fields(ModelConfig)
        if field.name != "dropout" and getattr(found, field.name) != getattr(wanted, field.name)
    ]
    if changes:
        raise ConfigError(
            "\n  ".join([f"{directory}: its model has another shape than is asked for", *changes]),
            hint="leave these settings out: they are taken from the pretrained model",
        )


def check_same_text(output: Path, then: dict[str, str], now: dict[str, str]) -> None:
    """Raise a ConfigError if a text, by its hash, is not the one that a run began with."""
    changed = [name for name, sha256 in now.items() if then.get(name) != sha256]
    if changed:
        verb = "are not those" if len(changed) > 1 else "is not the one"
        raise ConfigError(
            f"{output}: the {' and the '.join(changed)} {verb} this run began with",
            hint="restore the text, or start again with `--overwrite` or another `--output`",
        )


def _check_same_batches(output: Path, then: RunConfig, now: RunConfig) -> None:
    """The place of a run is told in batches, which must not change their size.

    They would with `--max-tokens auto`, where `--update-freq` makes batches larger, not more.
    """
    wanted, found = (
        resolve_batch_size(each.training, each.preset).max_tokens for each in (then, now)
    )
    if wanted != found:
        raise ConfigError(
            f"{output}: its batches have {wanted} target pieces, and would have {found}",
            hint=f"use `--update-freq {then.training.update_freq}` as before",
        )
