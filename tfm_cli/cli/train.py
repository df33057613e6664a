"""`tfm train`: from parallel text to a model directory."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tfm_cli.cli.options import (
    Command,
    Options,
    flags_of,
    option,
    quiet_option,
    set_up_logging,
    setting_names,
)
from tfm_cli.config.loading import Lookups, Overrides, read_toml, resolve, to_mapping, write_toml
from tfm_cli.config.presets import AUTO, PRESETS, Recipe
from tfm_cli.config.settings import DataConfig, RunConfig
from tfm_cli.console import visible
from tfm_cli.errors import ConfigError, Interrupted, OutOfTime
from tfm_cli.files.atomic import check_writable
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.cpu_cores import import_numpy
from tfm_cli.text.writer import open_output, write_lines
from tfm_cli.training.time_limit import TimeLimit

if TYPE_CHECKING:
    from tfm_cli.training.events import Stopped
    from tfm_cli.training.run_settings import Choice


class TrainOptions(Options):
    """The options of `tfm train` that are not settings."""

    output: Path = option(
        "Model",
        "--output",
        "-o",
        metavar="DIR",
        default=Path("model"),
        help="Model directory to write; a run in it is resumed.",
    )
    overwrite: bool = option(
        "Model", "--overwrite", default=False, help="Start over, replacing the model in --output."
    )
    allow_change: bool = option(
        "Model",
        "--allow-change",
        default=False,
        help="Resume with another learning rate, warm-up, batch size, dropout or the like, and "
        "record the change in the model card and in metrics.jsonl.",
    )
    preset: str | None = option(
        "Model",
        "--preset",
        "--task",
        "--arch",
        metavar="NAME",
        shown_default=AUTO,
        help=f"Model shape and training recipe: {', '.join(PRESETS)}; or {AUTO}, by the number of "
        "pairs and the device.",
    )._replace(completions=(AUTO, *PRESETS))
    config_file: Path | None = option(
        "Settings",
        "--config",
        "-c",
        metavar="FILE",
        help="Settings from a TOML file, or from a model's config.json.",
    )
    assignments: tuple[str, ...] = option(
        "Settings",
        "--set",
        metavar="SECTION.NAME=VALUE",
        default=(),
        help="Any setting of the file. Repeatable.",
    )._replace(completions=tuple(f"{name}=" for name in setting_names()))
    tensorboard: Path | None = option(
        "Validation and checkpoints",
        "--tensorboard",
        metavar="DIR",
        help="Write the learning curves for TensorBoard as well.",
    )
    summary: Literal["json"] | None = option(
        "Messages",
        "--summary",
        help="Print scores, hashes and the reason for the end on standard output.",
    )
    dump_config: bool = option(
        "Settings", "--dump-config", default=False, help="Print all settings as TOML and exit."
    )
    quiet: bool = quiet_option()


def train(options: TrainOptions) -> None:
    """Train a Transformer on parallel text, by default the sample corpus.

    A run in --output is resumed, with its own settings and text unless others are given. Settings
    are resolved in this order; later ones win: defaults, the preset, --config, --set, other flags.

    Example:  tfm train -s train.en -t train.de -vs dev.en -vt dev.de
    """
    began = time.monotonic()
    parallel = Parallel.from_environment()
    set_up_logging(options.quiet, parallel)
    _check_exclusions(options)
    notes: list[str] = []
    config = _resolved(options, notes)
    if options.dump_config:
        check_writable("-")
        sys.stdout.write(visible(write_toml(config)))  # TOML has the same escapes
        return

    if options.summary:
        check_writable("-")
    limit = TimeLimit(config.training.max_time, began=began)
    with _summarized(options, parallel) as ended:
        # A single process does not import torch to connect.
        with limit.alarm(), parallel.connected(timeout_seconds=config.parallel.timeout):
            # A launcher restarts the command after a failure; that must resume, not start over.
            overwrite = options.overwrite and not parallel.has_flag("begun")
            stopped = _train(
                config, options, notes, overwrite=overwrite, parallel=parallel, limit=limit
            )
        ended(stopped.reason, stopped.is_complete)


@contextlib.contextmanager
def _summarized(options: TrainOptions, parallel: Parallel) -> Iterator[Callable[[str, bool], None]]:
    """Print the summary that was asked for when the run in the block ends or is interrupted.

    Yields a function to call with the reason for the end, and True if the run is complete.
    """
    if options.summary is None or not parallel.is_main:
        yield lambda reason, is_complete: None
        return
    from tfm_cli.training.summary import identity, run_summary

    replaced = identity(options.output) if options.overwrite else None

    def print_summary(reason: str, is_complete: bool = False) -> None:
        facts = run_summary(
            options.output, reason=reason, is_complete=is_complete, replaced=replaced
        )
        with open_output("-") as stream:
            write_lines(stream, [json.dumps(facts)])

    try:
        yield print_summary
    except Interrupted as stop:
        print_summary(f"{signal.Signals(stop.exit_code - 128).name} was received")
        raise
    except KeyboardInterrupt:
        print_summary("SIGINT was received")
        raise
    except OutOfTime as stop:
        print_summary(str(stop))
        raise


def _resolved(options: TrainOptions, notes: list[str]) -> RunConfig:
    """Return the settings of the run, on top of those of the run in `--output` if there is one.

    Args:
        options: the options of the command.
        notes: the reason for the preset is added, if it was chosen automatically.

    Raises:
        ConfigError: a setting is wrong, or the text of the run came from standard input.
    """
    choices: list[Choice] = []
    resumed = None if options.overwrite else _saved_settings(options.output)
    config = resolve(
        preset=options.preset,
        file=options.config_file,
        assignments=options.assignments,
        flags=options.settings,
        resumed=resumed,
        lookups=Lookups(
            recipe=partial(_automatic_recipe, choices=choices),
            pretrained=_pretrained_settings,
            file=_read_settings,
            flag=_flag_of,
        ),
    )
    notes += [line for choice in choices for line in choice.lines(config)]
    if resumed is None and config.training.pretrained_model:
        from tfm_cli.training.run_settings import log_ignored

        given = {
            f"{section}.{name}" for section, table in options.settings.items() for name in table
        }
        log_ignored(config, given, _name_of, preset=options.preset)
    names_pairs = any(
        each.partition("=")[0].strip() == "data.pairs" for each in options.assignments
    )
    is_given = "pairs" in options.given or options.config_file or names_pairs
    if resumed is not None and "-" in config.data.pairs and not is_given:
        raise ConfigError(
            f"{options.output}: the run in it reads its text from standard input",
            hint="give the text again with `--pairs -`, or as a file with `--pairs FILE`",
        )
    return config


def _check_exclusions(options: TrainOptions) -> None:
    given = options.given
    names = (
        ("model", "vocab_size"),
        ("model", "normalization_rule_name"),
        ("pretrained_model", "normalization_rule_name"),
    )
    for one, other in names:
        if one in given and other in given:
            raise ConfigError(f"`{given[one]}` and `{given[other]}` exclude each other")


def _train(
    config: RunConfig,
    options: TrainOptions,
    notes: Sequence[str],
    *,
    overwrite: bool,
    parallel: Parallel,
    limit: TimeLimit,
) -> "Stopped":
    """Train or resume the run, and return the reason for its end."""
    import_numpy()
    from tfm_cli.training.starting import StartOptions, start

    if parallel.world_size > 1 and "-" in config.data.pairs:
        raise ConfigError(
            f"`--pairs -`: {parallel.world_size} processes cannot all read it",
            hint="name a file that each of them can read",
        )
    start_options = StartOptions(
        overwrite=overwrite,
        allow_change=options.allow_change,
        name_of=_name_of,
        more_inputs=(options.config_file,) if options.config_file else (),
        notes=notes,
        tensorboard=options.tensorboard,
    )
    return start(config, options.output, start_options, parallel=parallel, limit=limit)


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file, or of a model's `config.json`."""
    is_json = False
    # A pipe can be read only once; `read_toml` reports errors.
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as stream:
                is_json = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    if not is_json:
        return read_toml(path)
    from tfm_cli.model_directory.config_file import load_config_file

    return to_mapping(load_config_file(path).settings)


def _saved_settings(output: Path) -> RunConfig | None:
    """Return the settings of the run in a directory; None if there is none."""
    if not output.is_dir():
        return None
    from tfm_cli.training.run_settings import saved_settings

    return saved_settings(output)


def _automatic_recipe(data: DataConfig, device: object, *, choices: list["Choice"]) -> Recipe:
    """Return the recipe that preset `auto` is for a text and a device, and add the choice."""
    from tfm_cli.training.run_settings import automatic_recipe

    return automatic_recipe(data, device, choices)


def _pretrained_settings(directory: str) -> Overrides:
    """Return the settings that a new run takes from a pretrained model."""
    from tfm_cli.training.run_settings import pretrained_settings

    return pretrained_settings(directory)


def _name_of(setting: str) -> str:
    """Return the flag of a setting, or else its name."""
    return _flag_of(setting) or setting


def _flag_of(setting: str) -> str:
    """Return the flag of a setting; empty if this command has none for it."""
    if setting == "preset":
        return "--preset"
    has_flag = any(setting in settings for settings in COMMAND.settings.values())
    return flags_of(setting)[0] if has_flag else ""


COMMAND = Command(
    train,
    TrainOptions,
    {
        "Text": (
            "data.source", "data.target", "data.pairs", "data.pairs_format", "data.valid_source",
            "data.valid_target", "data.max_length", "data.max_ratio", "data.subword_sampling",
            "data.subword_alpha", "data.bad_utf8", "data.cache", "data.workers",
        ),
        "Model": (
            "tokenizer.model", "tokenizer.vocab_size", "tokenizer.normalization_rule_name",
            "model.dropout", "model.attention_dropout", "model.activation_dropout",
            "model.word_dropout", "training.pretrained_model",
        ),
        "Duration": ("training.max_updates", "training.max_epochs", "training.max_time"),
        "Optimization": (
            "training.max_tokens", "training.update_freq", "training.learn_rate",
            "training.lr_warmup", "training.schedule", "training.decay_ratio",
            "training.label_smoothing", "training.consistency", "training.consistency_alpha",
            "training.token_cutoff", "training.seed",
        ),
        "Validation and checkpoints": (
            "validation.freq", "validation.early_stopping", "validation.metrics",
            "training.save_freq", "training.disp_freq",
        ),
        "Hardware": (
            "training.device", "training.precision", "training.deterministic",
            "training.cpu_threads", "parallel.timeout",
        ),
        "Settings": (),
        "Messages": (),
    },
    has_presets=True,
)  # fmt: skip
