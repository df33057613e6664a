"""The settings that a run takes from the run to resume, a pretrained model or the size of its text.

Nothing here imports NumPy or PyTorch.
"""

import contextlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from tfm_cli.config.loading import Overrides, to_mapping
from tfm_cli.config.presets import Recipe, preset_values, recipe_for
from tfm_cli.config.settings import DataConfig, RunConfig
from tfm_cli.console import counted
from tfm_cli.corpus.size import estimated_pairs
from tfm_cli.device import has_mps, num_gpus
from tfm_cli.errors import ModelError
from tfm_cli.files.layout import CONFIG_FILE
from tfm_cli.model_directory.config_file import load_config

logger = logging.getLogger(__name__)

# Pretrained weights need few updates until the moments of the optimizer are estimated.
FINE_TUNING_WARMUP = 200
_USUAL_PAIRS = 100_000  # assumed of text that can be read only once


def saved_settings(output: Path) -> RunConfig | None:
    """Return the settings of the run in a directory; None if there is none, or if it is damaged."""
    with contextlib.suppress(ModelError, OSError):  # reported when the directory is checked
        if (output / CONFIG_FILE).exists():
            return load_config(output).settings
    return None


def pretrained_settings(directory: str) -> Overrides:
    """Return the settings that a new run takes from a pretrained model, and its short warm-up."""
    tables = to_mapping(load_config(Path(directory)).settings)
    recipe = {"lr_warmup": FINE_TUNING_WARMUP}
    return {"model": tables["model"], "search": tables["search"], "training": recipe}


class Choice(NamedTuple):
    """The recipe that preset `auto` was for a text and a device."""

    recipe: Recipe
    size: str  # of the text
    device: str

    def lines(self, config: RunConfig) -> list[str]:
        """Return what was chosen, with the values that the run has, and why.

        Args:
            config: the settings of the run.
        """
        given = {"vocab_size"} if config.tokenizer.model else set()
        changes = [
            f"{name} {getattr(getattr(config, section), name)}"
            for section, table in self.recipe.changes.items()
            for name in table
            if name not in given
        ]
        changed = f" with {', '.join(changes)}" if changes else ""
        return [
            f"preset auto: `{self.recipe.preset}`{changed}",
            f"for {self.size} on a {self.device}: {self.recipe.reason}",
        ]


def automatic_recipe(data: DataConfig, device: object, choices: list[Choice]) -> Recipe:
    """Return the recipe that preset `auto` is for a text and a device.

    Args:
        data: the settings that name the text.
        device: the name of the device.
        choices: the choice is added.
    """
    pairs = estimated_pairs(data)
    has_gpu = device != "cpu" and (num_gpus() > 0 or has_mps())
    recipe = recipe_for(_USUAL_PAIRS if pairs is None else pairs, has_gpu=has_gpu)
    size = "text that cannot be counted" if pairs is None else counted(pairs, "pair")
    choices.append(Choice(recipe, size, "GPU" if has_gpu else "CPU"))
    return recipe


def log_ignored(
    config: RunConfig, given: Collection[str], name_of: Callable[[str], str], *, preset: str | None
) -> None:
    """Log the settings of a new run that have no effect beside its pretrained model.

    Args:
        config: all settings.
        given: the settings that were given by name, as `section.name`.
        name_of: returns the name of a setting in messages.
        preset: the preset that was given.
    """
    directory = config.training.pretrained_model
    if not directory:
        return
    usual = {**to_mapping(RunConfig())["tokenizer"], **preset_values(config.preset, "tokenizer")}
    ignored = [
        f"`{name_of(f'tokenizer.{name}')}`"
        for name, value in usual.items()
        if name != "model"
        and (getattr(config.tokenizer, name) != value or f"tokenizer.{name}" in given)
    ]
    if ignored:
        verb = "is" if len(ignored) == 1 else "are"
        logger.warning(
            "%s %s ignored: the tokenizer is that of `%s`", ", ".join(ignored), verb, directory
        )
    if preset:
        logger.info("preset `%s`: its recipe is used, the shape is that of `%s`", preset, directory)
