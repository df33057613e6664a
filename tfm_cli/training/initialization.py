"""The initial tokenizers and weights of a run: existing ones, or random weights."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from tfm_cli.config.settings import DROPOUT_SETTINGS, ModelConfig, RunConfig
from tfm_cli.errors import ConfigError
from tfm_cli.evaluation.bleu_tokenizer import DEFAULT_TOKENIZER, check_available, choose_tokenizer
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.config_file import load_config, load_tokenizers
from tfm_cli.model_directory.weights import build_transformer, load_model
from tfm_cli.parallel import Parallel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.training.memory import resolve_batch_size
from tfm_cli.training.state import TrainState

logger = logging.getLogger(__name__)


def load_initial_parts(
    config: RunConfig, output: Path, *, resume: bool
) -> tuple[TokenizerPair | None, Transformer | None]:
    """Return the tokenizers and the model that exist before any text is read, None if missing.

    A resumed run has tokenizers; its weights come from a checkpoint.
    """
    if resume:
        return load_tokenizers(output, load_config(output)), None
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
    """Return the settings with the BLEU tokenizer of the resumed run, or one chosen for `auto`.

    Args:
        config: all settings.
        output: the directory of the run; only rank 0 reads it.
        references: references of the validation text; if empty, the setting does not change.
        resume: the run is resumed.
        parallel: the processes, which all get the same tokenizer.

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
    """Return a model with random weights, drawn with `training.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return build_transformer(config.model, tokenizers.vocab_sizes)


def _check_same_shape(directory: Path, actual: ModelConfig, expected: ModelConfig) -> None:
    changes = [
        f"model.{field.name}: {getattr(actual, field.name)} → {getattr(expected, field.name)}"
        for field in dataclasses.fields(ModelConfig)
        if field.name not in DROPOUT_SETTINGS
        and getattr(actual, field.name) != getattr(expected, field.name)
    ]
    if changes:
        raise ConfigError(
            "\n  ".join(
                [f"{directory}: the settings ask for another shape than its model", *changes]
            ),
            hint="leave these settings out: they are taken from the pretrained model",
        )


def check_same_text(output: Path, original: dict[str, str], current: dict[str, str]) -> None:
    """Raise a ConfigError if the hash of a text differs from that at the start of the run."""
    changed = [name for name, sha256 in current.items() if original.get(name) != sha256]
    if changed:
        verb = "are not those" if len(changed) > 1 else "is not the one"
        raise ConfigError(
            f"{output}: the {' and the '.join(changed)} {verb} this run began with",
            hint=f"restore the text; to train its model on this text, use `--pretrained-model "
            f"{output}` and another `--output`; `--overwrite` starts again",
        )


def check_same_batch_size(
    output: Path, config: RunConfig, state: TrainState, *, allow_change: bool
) -> None:
    """Raise a ConfigError if the batch size changed, since the position to resume counts batches.

    With `--max-tokens auto`, `--update-freq` changes the size of batches instead of their number.

    Args:
        output: the directory of the run, with its former settings.
        config: the settings to resume it with.
        state: its position.
        allow_change: permit the change.
    """
    original = load_config(output).settings
    expected, actual = (
        resolve_batch_size(each.training, each.preset).max_tokens for each in (original, config)
    )
    if expected == actual:
        return
    message = f"{output}: its batches have {expected} target tokens, and would have {actual}"
    if not allow_change:
        hint = f"use `--update-freq {original.training.update_freq}` as before, or `--allow-change`"
        raise ConfigError(message, hint=hint)
    if not state.batch_tokens:  # a run that is killed before its next checkpoint could not resume
        raise ConfigError(
            f"{message}; its newest checkpoint is of an older version of tfm",
            hint="resume it until its next checkpoint without this change",
        )
