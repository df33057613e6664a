"""`tfm train`: from parallel text to a model directory."""

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tfm_cli import console
from tfm_cli.cli.options import flag, rule_name
from tfm_cli.config.loading import Overrides, resolve, to_mapping, write_toml
from tfm_cli.config.presets import PRESETS
from tfm_cli.config.settings import (
    DataConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)
from tfm_cli.console import visible
from tfm_cli.errors import ConfigError, ModelError
from tfm_cli.files.atomic import check_writable
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.cpu_cores import import_numpy
from tfm_cli.training.time_limit import TimeLimit

logger = logging.getLogger(__name__)

_MANY = "Repeatable."


def train(
    source: Annotated[
        list[str] | None, flag(DataConfig, "source", "--source", "-s", extra=_MANY, metavar="FILE")
    ] = None,
    target: Annotated[
        list[str] | None, flag(DataConfig, "target", "--target", "-t", extra=_MANY, metavar="FILE")
    ] = None,
    pairs: Annotated[
        list[str] | None, flag(DataConfig, "pairs", extra=_MANY, metavar="FILE")
    ] = None,
    pairs_format: Annotated[str | None, flag(DataConfig, "pairs_format")] = None,
    valid_source: Annotated[
        list[str] | None,
        flag(DataConfig, "valid_source", "--valid-source", "-vs", extra=_MANY, metavar="FILE"),
    ] = None,
    valid_target: Annotated[
        list[str] | None,
        flag(DataConfig, "valid_target", "--valid-target", "-vt", extra=_MANY, metavar="FILE"),
    ] = None,
    max_length: Annotated[int | None, flag(DataConfig, "max_length")] = None,
    max_ratio: Annotated[float | None, flag(DataConfig, "max_ratio")] = None,
    bad_utf8: Annotated[str | None, flag(DataConfig, "bad_utf8")] = None,
    data_cache: Annotated[
        str | None, flag(DataConfig, "cache", "--data-cache", metavar="DIR")
    ] = None,
    data_workers: Annotated[
        int | None, flag(DataConfig, "workers", "--data-workers", "--data-threads")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Model directory to make or to go on with."
        ),
    ] = Path("model"),
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "--task",
            "--arch",
            metavar="NAME",
            help=f"Shape and recipe: {', '.join(PRESETS)}. [default: tiny]",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, flag(TokenizerConfig, "model", "--tokenizer", metavar="FILE")
    ] = None,
    vocab_size: Annotated[int | None, flag(TokenizerConfig, "vocab_size", shown=False)] = None,
    normalization_rule_name: Annotated[
        str | None, flag(TokenizerConfig, "normalization_rule_name", metavar="NAME|FILE")
    ] = None,
    max_updates: Annotated[
        int | None,
        flag(TrainingConfig, "max_updates", "--max-updates", "--max-update", shown=False),
    ] = None,
    max_epochs: Annotated[
        int | None, flag(TrainingConfig, "max_epochs", "--max-epochs", "--max-epoch")
    ] = None,
    max_time: Annotated[str | None, flag(TrainingConfig, "max_time", metavar="TIME")] = None,
    max_tokens: Annotated[
        int | None,
        flag(
            TrainingConfig,
            "max_tokens",
            "--max-tokens",
            "--mini-batch-words",
            shown=False,
            metavar="N",
            auto=True,
        ),
    ] = None,
    update_freq: Annotated[
        int | None, flag(TrainingConfig, "update_freq", "--update-freq", "--optimizer-delay")
    ] = None,
    learn_rate: Annotated[
        float | None, flag(TrainingConfig, "learn_rate", "--learn-rate", "--lr", shown=False)
    ] = None,
    lr_warmup: Annotated[
        int | None,
        flag(TrainingConfig, "lr_warmup", "--lr-warmup", "--warmup-updates", shown=False),
    ] = None,
    label_smoothing: Annotated[float | None, flag(TrainingConfig, "label_smoothing")] = None,
    dropout: Annotated[float | None, flag(ModelConfig, "dropout", shown=False)] = None,
    disp_freq: Annotated[
        int | None, flag(TrainingConfig, "disp_freq", "--disp-freq", "--log-interval")
    ] = None,
    valid_freq: Annotated[
        int | None,
        flag(ValidationConfig, "freq", "--valid-freq", "--validate-interval-updates"),
    ] = None,
    save_freq: Annotated[
        int | None,
        flag(TrainingConfig, "save_freq", "--save-freq", "--save-interval-updates"),
    ] = None,
    early_stopping: Annotated[
        int | None,
        flag(ValidationConfig, "early_stopping", "--early-stopping", "--patience"),
    ] = None,
    valid_metrics: Annotated[
        list[str] | None,
        flag(ValidationConfig, "metrics", "--valid-metrics", extra="Repeated or comma-separated."),
    ] = None,
    device: Annotated[str | None, flag(TrainingConfig, "device")] = None,
    precision: Annotated[str | None, flag(TrainingConfig, "precision")] = None,
    seed: Annotated[int | None, flag(TrainingConfig, "seed")] = None,
    deterministic: Annotated[
        bool | None, flag(TrainingConfig, "deterministic", "--deterministic/--no-deterministic")
    ] = None,
    cpu_threads: Annotated[int | None, flag(TrainingConfig, "cpu_threads")] = None,
    dist_timeout: Annotated[
        int | None, flag(ParallelConfig, "timeout", "--dist-timeout", metavar="SECONDS")
    ] = None,
    pretrained_model: Annotated[
        str | None,
        flag(
            TrainingConfig,
            "pretrained_model",
            "--pretrained-model",
            "--finetune-from-model",
            metavar="DIR",
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Settings from a TOML file."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.NAME=VALUE", help=f"Any setting of the file. {_MANY}"
        ),
    ] = None,
    dump_config: Annotated[
        bool, typer.Option("--dump-config", help="Print all settings as TOML and do nothing else.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again where there is a model already.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
) -> None:
    """Train a Transformer on parallel text; without arguments, on the sample corpus.

    The same command again goes on where it was stopped. A setting comes from, the later the
    stronger: its default, the preset, --config, --set, its own flag.

    \b
    Example:  tfm train -s train.en -t train.de --valid-source dev.en --valid-target dev.de
    """
    began = time.monotonic()
    parallel = Parallel.from_environment()
    console.setup(
        (console.QUIET if quiet else console.NORMAL) if parallel.is_main else console.SILENT
    )
    metrics = [m.strip() for given in valid_metrics or [] for m in given.split(",")] or None
    flags: Overrides = {
        "data": {
            "source": source or None,
            "target": target or None,
            "pairs": pairs or None,
            "pairs_format": pairs_format,
            "max_length": max_length,
            "max_ratio": max_ratio,
            "bad_utf8": bad_utf8,
            "cache": data_cache,
            "workers": data_workers,
            "valid_source": valid_source or None,
            "valid_target": valid_target or None,
        },
        "tokenizer": {
            "model": tokenizer,
            "vocab_size": vocab_size,
            "normalization_rule_name": normalization_rule_name
            and rule_name(normalization_rule_name),
        },
        "model": {"dropout": dropout},
        "training": {
            "max_updates": max_updates,
            "max_epochs": max_epochs,
            "max_time": max_time,
            "max_tokens": max_tokens,
            "update_freq": update_freq,
            "learn_rate": learn_rate,
            "lr_warmup": lr_warmup,
            "label_smoothing": label_smoothing,
            "disp_freq": disp_freq,
            "save_freq": save_freq,
            "device": device,
            "precision": precision,
            "seed": seed,
            "deterministic": deterministic,
            "cpu_threads": cpu_threads,
            "pretrained_model": pretrained_model,
        },
        "validation": {"freq": valid_freq, "early_stopping": early_stopping, "metrics": metrics},
        "parallel": {"timeout": dist_timeout},
    }
    config = resolve(
        preset=preset,
        file=config_file,
        assignments=assignments or (),
        flags=flags,
        pretrained=lambda directory: _pretrained(Path(directory), output),
        begun=None if overwrite else _begun(output),
    )
    if tokenizer is not None and vocab_size is not None:
        raise ConfigError("`--tokenizer` and `--vocab-size` exclude each other")
    for name, given in (("tokenizer", tokenizer), ("pretrained-model", pretrained_model)):
        if given is not None and normalization_rule_name is not None:
            raise ConfigError(f"`--{name}` and `--normalization-rule-name` exclude each other")
    if dump_config:
        check_writable("-")
        sys.stdout.write(visible(write_toml(config)))  # TOML spells the same text so
        return

    limit = TimeLimit(config.training.max_time, began=began)
    # One process alone imports no torch for it.
    with limit.alarm(), parallel.connected(timeout_seconds=config.parallel.timeout):
        # What began again already is gone on with, when the launcher starts it after a failure.
        overwrite = overwrite and not parallel.has_flag("begun")
        _train(
            config,
            output,
            overwrite=overwrite,
            parallel=parallel,
            config_file=config_file,
            limit=limit,
        )


def _train(
    config: RunConfig,
    output: Path,
    *,
    overwrite: bool,
    parallel: Parallel,
    config_file: Path | None,
    limit: TimeLimit,
) -> None:
    import_numpy()
    from tfm_cli.training import data, run_directory

    if parallel.world > 1 and "-" in config.data.pairs:
        raise ConfigError(
            f"`--pairs -`: {parallel.world} processes cannot all read it",
            hint="name a file that each of them can read",
        )
    if parallel.is_main:  # before even a lock is written there
        more = [config_file] if config_file else []
        run_directory.check_output(config, output, overwrite=overwrite)
        run_directory.check_inputs_not_overwritten(config, output, resume=True, more=more)
    with contextlib.ExitStack() as inside:
        if parallel.is_main:
            inside.enter_context(run_directory.locked(output))
        resume = parallel.is_main and run_directory.can_resume(config, output, overwrite=overwrite)
        if parallel.is_main:
            run_directory.check_inputs_not_overwritten(config, output, resume=resume)
        data.check_inputs(config, trains_tokenizer=parallel.is_main and not resume)
        if not (config.data.source or config.data.pairs):
            logger.info(
                "no training text is named: training on the sample corpus, preset `%s`",
                config.preset,
            )

        from tfm_cli.training.run import run  # imports torch: seconds, so not at the top

        if parallel.is_main and not resume:
            inside.enter_context(run_directory.marked(output))
        run(config, output, resume=resume, parallel=parallel, limit=limit)


def _begun(output: Path) -> RunConfig | None:
    """The settings of the run in a directory, if there is one."""
    from tfm_cli.files.layout import CONFIG_FILE
    from tfm_cli.model_directory.config_file import load_config

    with contextlib.suppress(ModelError):  # which is told when the directory is looked at
        if (output / CONFIG_FILE).exists():
            return load_config(output).settings
    return None


def _pretrained(directory: Path, output: Path) -> Overrides:
    """What a model to start from was made with, as far as a new run must agree with it."""
    from tfm_cli.files.layout import CONFIG_FILE
    from tfm_cli.model_directory.config_file import load_config

    if not directory.exists() and (output / CONFIG_FILE).is_file():
        began = load_config(output)
        if began.settings.training.pretrained_model == str(directory):
            directory = output  # a run that began needs it no more
    tables = to_mapping(load_config(directory).settings)
    return {"model": tables["model"], "search": tables["search"]}
