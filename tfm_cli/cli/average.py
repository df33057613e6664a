"""`tfm average`: a model with the mean of the weights of several checkpoints."""

from pathlib import Path

from tfm_cli.cli.options import Command, Options, option, quiet_option, set_up_logging
from tfm_cli.errors import ConfigError


class AverageOptions(Options):
    """The options of `tfm average`."""

    run: Path = option(
        "Model", metavar="RUN", default=..., help="Directory of a run, with its checkpoints."
    )
    last: int | None = option(
        "Model", "--last", metavar="N", ge=1, le=1000, help="Average the N newest checkpoints."
    )
    best: int | None = option(
        "Model",
        "--best",
        metavar="N",
        ge=1,
        le=1000,
        help="Average the N checkpoints with the best validation scores, as kept by "
        "training.keep_best.",
    )
    output: Path = option(
        "Model", "--output", "-o", metavar="DIR", default=..., help="Model directory to write."
    )
    overwrite: bool = option(
        "Model", "--overwrite", default=False, help="Replace a model in the output directory."
    )
    quiet: bool = quiet_option()


def average(options: AverageOptions) -> None:
    """Average the weights of several checkpoints of a run, and score the model.

    The mean is that of the trained weights, not of their moving averages. It is scored on the
    validation text of the run.

    Example:  tfm average run --last 5 -o averaged
    """
    set_up_logging(options.quiet)
    if (options.last is None) == (options.best is None):
        raise ConfigError("expected one of `--last` and `--best`")

    from tfm_cli.training.averaging import average as run  # imports torch: seconds

    run(
        options.run,
        options.output,
        last=options.last or 0,
        best=options.best or 0,
        overwrite=options.overwrite,
    )


COMMAND = Command(average, AverageOptions, {"Model": (), "Messages": ()})
