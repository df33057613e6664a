"""How `tfm evaluate` may be called: sacreBLEU's lists of values, and which flags go together."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from tfm_cli.cli.overwriting import model_files, refuse_overwriting
from tfm_cli.errors import ConfigError
from tfm_cli.evaluation.scores import METRICS
from tfm_cli.files import check_writable

logger = logging.getLogger(__name__)

_FOR_MODEL = ("source", "output", "beam_size", "length_penalty", "device", "precision", "workers")
_FOR_CORPUS = ("confidence", "paired_bs", "paired_ar", "fail_under")
_IDLE_WITHOUT = {  # settings that are idle unless the metric or flag behind them is asked for
    "tokenize": "bleu",
    "lowercase": "bleu",
    "smooth_method": "bleu",
    "smooth_value": "bleu",
    "chrf_char_order": "chrf",
    "chrf_word_order": "chrf",
    "confidence_n": "confidence",
    "paired_bs_n": "paired_bs",
    "paired_ar_n": "paired_ar",
}


class EvaluateCommand(TyperCommand):
    """Reads `-m bleu chrf`, and after the references `-i a.txt b.txt`, as sacreBLEU does.

    Otherwise the second system would be taken for one more reference, and scores would be wrong.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each further value a flag of its own, then parse as ever."""
        rest, spread = list(args), list[str]()
        while rest:
            option = rest.pop(0)
            if option in ("-m", "--metrics") and rest:
                spread += [option, rest.pop(0)]
                while rest and rest[0] in METRICS:
                    spread += [option, rest.pop(0)]
            elif option in ("-i", "--input") and rest:
                has_references = self.make_parser(ctx).parse_args(list(spread))[0]["references"]
                spread += [option, rest.pop(0)]
                while has_references and rest and (rest[0] == "-" or rest[0][:1] != "-"):
                    spread += [option, rest.pop(0)]
            else:
                spread.append(option)
                if option == "--":
                    spread, rest = spread + rest, []
        return super().parse_args(ctx, spread)


def given_flags(ctx: typer.Context) -> dict[str, str]:
    """The flags that stood on the command line, by the name of their parameter."""
    given = {}
    for parameter in ctx.command.params:
        origin = ctx.get_parameter_source(parameter.name or "")
        if origin is not None and origin.name == "COMMANDLINE":
            given[str(parameter.name)] = max(parameter.opts, key=len)
    return given


def systems_once(paths: Sequence[str], *, paired: bool) -> list[str]:
    """The paths but for a paired test's baseline that is given again, as in `-i base.txt *.txt`.

    Raises:
        ConfigError: any other path that is given twice.
    """
    rest = [path for path in paths[1:] if not (paired and path == paths[0])]
    systems = [paths[0], *rest]
    twice = sorted({path for path in systems if systems.count(path) > 1})
    if twice:
        raise ConfigError(f"given more than once with `--input`: {', '.join(twice)}")
    return systems


def check_usage(given: Mapping[str, str], names: Sequence[str], *, num_systems: int) -> None:
    """Refuse what contradicts itself, all at once; warn of what has no effect."""
    problems = []
    if "model" not in given:
        problems += [f"`{given[name]}` needs `--model`" for name in _FOR_MODEL if name in given]
    elif "source" not in given:
        problems.append("`--model` needs `--source`, the text to translate")
    clashes = [("inputs", "model"), ("paired_bs", "paired_ar")]
    clashes += [("score_only", name) for name in ("paired_bs", "paired_ar")]
    clashes += [("sentence_level", name) for name in _FOR_CORPUS]
    for one, other in clashes:
        if one in given and other in given:
            problems.append(f"`{given[one]}` and `{given[other]}` exclude each other")
    for name in ("paired_bs", "paired_ar"):
        if name in given and num_systems == 1:
            problems.append(f"`{given[name]}` compares systems, got one; repeat `--input`")
    for name in ("confidence", "sentence_level"):
        if name in given and num_systems > 1:
            problems.append(f"`{given[name]}` is for one system, got {num_systems}")
    if "sentence_level" in given and len(names) > 1:
        problems.append(f"`--sentence-level` is for one metric, got {len(names)}")
    if len(problems) > 1:
        raise ConfigError("\n  ".join([f"the command has {len(problems)} problems", *problems]))
    if problems:
        raise ConfigError(problems[0])
    for name, need in _IDLE_WITHOUT.items():
        if name in given and need not in given and need not in names:
            shown = f"`-m {need}`" if need in METRICS else f"`--{need.replace('_', '-')}`"
            logger.warning("`%s` has no effect without %s", given[name], shown)


def check_output(output: Path, read: Sequence[str], model: Path | None) -> None:
    """Refuse a place for translations that cannot be written, or that is one of the files read."""
    if str(output) == "-":
        raise ConfigError("`--output` must be a file: standard output is for the scores")
    refuse_overwriting(output, [*read, *([] if model is None else model_files(model))])
    check_writable(output)
