"""`tfm train`: from parallel text to a model directory."""

import contextlib
import json
import logging
import signal
import sys
import time
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
from tfm_cli.config.loading import Overrides, read_toml, resolve, to_mapping, write_toml
from tfm_cli.config.presets import PRESETS
from tfm_cli.config.settings import RunConfig
from tfm_cli.console import visible
from tfm_cli.errors import ConfigError, Interrupted, ModelError, OutOfTime
from tfm_cli.files.atomic import check_writable
from tfm_cli.files.layout import CONFIG_FILE
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.cpu_cores import import_numpy
from tfm_cli.text.writer import open_output, write_lines
from tfm_cli.training.time_limit import TimeLimit

if TYPE_CHECKING:
    from tfm_cli.training.events import Stopped

logger = logging.getLogger(__name__)


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
    preset: str | None = option(
        "Model",
        "--preset",
        "--task",
        "--arch",
        metavar="NAME",
        shown_default="tiny",
        help=f"Model shape and training recipe: {', '.join(PRESETS)}.",
    )._replace(completions=tuple(PRESETS))
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

    The same command resumes a run that was stopped. Settings are resolved in this order; later
    ones win: defaults, the preset, --config, --set, other flags.

    Example:  tfm train -s train.en -t train.de -vs dev.en -vt dev.de
    """
    start = time.monotonic()
    parallel = Parallel.from_environment()
    set_up_logging(options.quiet, parallel)
    _check_exclusions(options)
    config = resolve(
        preset=options.preset,
        file=options.config_file,
        assignments=options.assignments,
        flags=options.settings,
        pretrained=lambda directory: _pretrained(Path(directory), options.output),
        resumed=None if options.overwrite else _saved_settings(options.output),
        read_file=_read_settings,
        flag_of=_flag_of,
    )
    if options.dump_config:
        check_writable("-")
        sys.stdout.write(visible(write_toml(config)))  # TOML has the same escapes
        return

    if options.summary:
        check_writable("-")
    limit = TimeLimit(config.training.max_time, began=start)
    try:
        # A single process does not import torch to connect.
        with limit.alarm(), parallel.connected(timeout_seconds=config.parallel.timeout):
            # A launcher restarts the command after a failure; that must resume, not start over.
            overwrite = options.overwrite and not parallel.has_flag("begun")
            stopped = _train(config, options, overwrite=overwrite, parallel=parallel, limit=limit)
    except Interrupted as stop:
        name = signal.Signals(stop.exit_code - 128).name
        _print_summary(options, parallel, f"{name} was received", is_complete=False)
        raise
    except OutOfTime as stop:
        _print_summary(options, parallel, str(stop), is_complete=False)
        raise
    _print_summary(options, parallel, stopped.reason, is_complete=stopped.is_complete)


def _print_summary(
    options: TrainOptions, parallel: Parallel, reason: str, *, is_complete: bool
) -> None:
    if options.summary is None or not parallel.is_main:
        return
    from tfm_cli.training.summary import run_summary

    facts = run_summary(options.output, reason=reason, is_complete=is_complete)
    with open_output("-") as stream:
        write_lines(stream, [json.dumps(facts)])


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
    *,
    overwrite: bool,
    parallel: Parallel,
    limit: TimeLimit,
) -> "Stopped":
    """Train or resume the run, and return the reason for its end."""
    import_numpy()
    from tfm_cli.training import data, run_directory, tensorboard

    output, config_file = options.output, options.config_file

    if parallel.world_size > 1 and "-" in config.data.pairs:
        raise ConfigError(
            f"`--pairs -`: {parallel.world_size} processes cannot all read it",
            hint="name a file that each of them can read",
        )
    if parallel.is_main:  # before a lock is written there
        more = [config_file] if config_file else []
        run_directory.check_output(config, output, overwrite=overwrite)
        run_directory.check_inputs_not_overwritten(config, output, resume=True, more=more)
        if options.tensorboard is not None:
            tensorboard.check_directory(options.tensorboard, output)
    with contextlib.ExitStack() as contexts:
        if parallel.is_main:
            contexts.enter_context(run_directory.locked(output))
        resume = parallel.is_main and run_directory.can_resume(config, output, overwrite=overwrite)
        if parallel.is_main:
            run_directory.check_inputs_not_overwritten(config, output, resume=resume)
        data.check_inputs(config, trains_tokenizer=parallel.is_main and not resume)
        if not (config.data.source or config.data.pairs):
            logger.info(
                "no training text is given: training on the sample corpus, preset `%s`",
                config.preset,
            )

        from tfm_cli.training.run import run  # imports torch: seconds, so not at the top

        if parallel.is_main and not resume:
            contexts.enter_context(run_directory.marked(output))
        return run(
            config,
            output,
            resume=resume,
            parallel=parallel,
            limit=limit,
            tensorboard=options.tensorboard,
        )


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


def _flag_of(setting: str) -> str:
    """Return the flag of a setting; empty if this command has none for it."""
    if setting == "preset":
        return "--preset"
    has_flag = any(setting in settings for settings in COMMAND.settings.values())
    return flags_of(setting)[0] if has_flag else ""


def _saved_settings(output: Path) -> RunConfig | None:
    """Return the settings of the run in a directory; None if there is none."""
    from tfm_cli.model_directory.config_file import load_config

    # Reported when the run directory is checked.
    with contextlib.suppress(ModelError, OSError):
        if (output / CONFIG_FILE).exists():
            return load_config(output).settings
    return None


def _pretrained(directory: Path, output: Path) -> Overrides:
    """Return the settings of a pretrained model that a new run must share."""
    from tfm_cli.model_directory.config_file import load_config

    if not directory.exists() and (output / CONFIG_FILE).is_file():
        begun = load_config(output)
        if begun.settings.training.pretrained_model == str(directory):
            directory = output  # a run that has begun no longer needs it
    tables = to_mapping(load_config(directory).settings)
    return {"model": tables["model"], "search": tables["search"]}


COMMAND = Command(
    train,
    TrainOptions,
    {
        "Text": (
            "data.source", "data.target", "data.pairs", "data.pairs_format", "data.valid_source",
            "data.valid_target", "data.max_length", "data.max_ratio", "data.bad_utf8",
            "data.cache", "data.workers",
        ),
        "Model": (
            "tokenizer.model", "tokenizer.vocab_size", "tokenizer.normalization_rule_name",
            "model.dropout", "model.attention_dropout", "model.activation_dropout",
            "model.word_dropout", "training.pretrained_model",
        ),
        "Duration": ("training.max_updates", "training.max_epochs", "training.max_time"),
        "Optimization": (
            "training.max_tokens", "training.update_freq", "training.learn_rate",
            "training.lr_warmup", "training.label_smoothing", "training.seed",
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
