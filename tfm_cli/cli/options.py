"""The options of the commands: each is declared once, as a setting or by its command."""

import dataclasses
import logging
import os
import re
import stat
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

from tfm_cli import console
from tfm_cli.config.presets import PRESETS
from tfm_cli.config.settings import (
    NORMALIZATION_RULES,
    SCHEDULES,
    SECTIONS,
    WARMUP_STABLE_DECAY,
    RunConfig,
)
from tfm_cli.config.validation import coerce
from tfm_cli.device import DECODING_PRECISIONS
from tfm_cli.errors import ConfigError
from tfm_cli.parallel import launcher

if TYPE_CHECKING:
    from typer.core import TyperCommand

    from tfm_cli.parallel import Parallel

# The flags of a setting: `--name` unless listed here. The main flag is first; the others are the
# names that fairseq, Marian and Sockeye use for it.
FLAGS: dict[str, tuple[str, ...]] = {
    "data.source": ("--source", "-s"),
    "data.target": ("--target", "-t"),
    "data.valid_source": ("--valid-source", "-vs"),
    "data.valid_target": ("--valid-target", "-vt"),
    "data.cache": ("--data-cache",),
    "data.workers": ("--data-workers", "--data-threads"),
    "tokenizer.model": ("--tokenizer",),
    "model.attention_dropout": ("--attention-dropout", "--transformer-dropout-attention"),
    "model.activation_dropout": (
        "--activation-dropout",
        "--relu-dropout",
        "--transformer-dropout-ffn",
    ),
    "training.max_updates": ("--max-updates", "--max-update"),
    "training.max_epochs": ("--max-epochs", "--max-epoch"),
    "training.max_tokens": ("--max-tokens", "--mini-batch-words"),
    "training.update_freq": ("--update-freq", "--optimizer-delay"),
    "training.learn_rate": ("--learn-rate", "--lr"),
    "training.lr_warmup": ("--lr-warmup", "--warmup-updates"),
    "training.schedule": ("--schedule", "--lr-scheduler"),
    "training.disp_freq": ("--disp-freq", "--log-interval"),
    "training.save_freq": ("--save-freq", "--save-interval-updates"),
    "training.pretrained_model": ("--pretrained-model", "--finetune-from-model"),
    "validation.freq": ("--valid-freq", "--validate-interval-updates"),
    "validation.early_stopping": ("--early-stopping", "--patience"),
    "validation.metrics": ("--valid-metrics",),
    "parallel.timeout": ("--dist-timeout",),
    "search.beam_size": ("--beam-size", "-b", "--beam"),
    "search.length_penalty": ("--length-penalty", "--normalize", "-n", "--lenpen"),
    "search.n_best": ("--n-best", "--nbest"),
    "search.max_tokens": ("--max-tokens", "--mini-batch-words"),
    "search.buffer_size": ("--buffer-size", "--maxi-batch", "--chunk-size"),
}
# Placeholders for values of settings in the help: N, X or NAME by type unless listed here.
METAVARS = {
    "data.source": "FILE",
    "data.target": "FILE",
    "data.pairs": "FILE",
    "data.valid_source": "FILE",
    "data.valid_target": "FILE",
    "data.cache": "DIR",
    "tokenizer.model": "FILE",
    "tokenizer.normalization_rule_name": "NAME|FILE",
    "training.max_time": "TIME",
    "training.pretrained_model": "DIR",
    "parallel.timeout": "SECONDS",
}


def flags_of(setting: str) -> tuple[str, ...]:
    """Return the flags of a setting, given as `section.name`, in commands that have one for it."""
    return FLAGS.get(setting, (f"--{setting.partition('.')[2].replace('_', '-')}",))


def setting_names() -> list[str]:
    """Return all settings as `section.name`."""
    return [f"{section}.{name}" for section in SECTIONS for name in _fields(section)]


def _rule_name(text: str) -> str:
    """Return a normalization rule in the spelling of the settings: `nmt-nfkc` is `nmt_nfkc`."""
    spelled = text.replace("-", "_")
    return spelled if spelled in NORMALIZATION_RULES else text


def _schedule_name(text: str) -> str:
    """Return a schedule in the spelling of the settings: `inverse_sqrt` is `inverse-sqrt`."""
    spelled = WARMUP_STABLE_DECAY if text == "wsd" else text.replace("_", "-")
    return spelled if spelled in SCHEDULES else text


# Conversions of spellings that only the flag of a setting accepts.
_SPELLINGS: dict[str, Callable[[str], str]] = {
    "tokenizer.normalization_rule_name": _rule_name,
    "training.max_tokens": lambda text: "0" if text == "auto" else text,
    "training.schedule": _schedule_name,
}
_COMMA_SEPARATED = ("validation.metrics",)

_WHOLE_NUMBER = re.compile("[+-]?[0-9]{1,4000}")
_NO_BOUNDS = dict.fromkeys(("ge", "le", "lt", "choices"))


class Option(NamedTuple):
    """An option of a command; one without flags is an argument."""

    heading: str
    flags: tuple[str, ...]
    help: str
    metavar: str = ""
    default: Any = None
    shown_default: str = ""
    bounds: Mapping[str, Any] = _NO_BOUNDS  # as in the metadata of a setting
    name: str = ""
    kind: Any = str  # bool, int, float, str, Path, or a tuple of str or Path
    section: str = ""  # empty unless it is a setting
    is_hidden: bool = False
    completions: tuple[str, ...] = ()  # what the shell completes, beside choices

    @property
    def flag(self) -> str:
        """Return the main flag, or the name of an argument."""
        return self.flags[0].partition("/")[0] if self.flags else self.metavar

    @property
    def is_list(self) -> bool:
        """Return True if the option may be repeated."""
        return isinstance(self.kind, types.GenericAlias)

    @property
    def is_required(self) -> bool:
        """Return True if it must be given."""
        return self.default is ...

    @property
    def parameter(self) -> str:
        """Return the name of the Typer parameter."""
        return f"{self.section}_{self.name}" if self.section else self.name

    def read(self, given: object) -> Any:
        """Return the value of the text that Typer found on the command line; None if there is none.

        Raises:
            ConfigError: it is missing, of another type, or out of bounds.
        """
        if self.kind is bool:
            return given if given is True or (given is False and "/" in self.flags[0]) else None
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list | tuple) or not texts:
            if self.is_required:
                raise ConfigError(f"`{self.flag}` is missing")
            return None
        items = [self._item(text) for text in texts]
        if self.key in _COMMA_SEPARATED:
            items = [part.strip() for item in items for part in item.split(",")]
        if self.kind is Path or self.kind == tuple[Path, ...]:
            return tuple(items) if self.is_list else items[0]
        value, complaint = coerce(items if self.is_list else items[0], self.kind, self.bounds)
        if complaint:
            raise ConfigError(f"`{self.flag}` {complaint}")
        return value

    @property
    def key(self) -> str:
        """Return the key of the tables above."""
        return f"{self.section}.{self.name}"

    def _item(self, text: str) -> Any:
        if self.kind is Path or self.kind == tuple[Path, ...]:
            return self._path(text)
        text = _SPELLINGS.get(self.key, str)(text)
        if self.kind is int and _WHOLE_NUMBER.fullmatch(text):
            return int(text)
        if self.kind is float:
            try:
                return float(text)
            except ValueError:
                return text  # refused by `coerce`
        return text

    def _path(self, text: str) -> Path:
        if not text:
            raise ConfigError(f"`{self.flag}` is empty")
        # Unlike Path's method, os.path takes a name that is too long.
        if os.path.exists(text) and not os.access(text, os.R_OK):  # noqa: PTH110
            raise ConfigError(f"`{self.flag}`: `{text}` is not readable")
        return Path(text)


def option(
    heading: str,
    *flags: str,
    help: str = "",
    default: Any = None,
    metavar: str = "",
    shown_default: str = "",
    ge: float | None = None,
    le: float | None = None,
    hidden: bool = False,
) -> Any:
    """Declare an option in a subclass of `Options`, where its annotation is its type.

    Args:
        heading: the heading under which the help lists it.
        flags: the main one first; none for an argument.
        help: one or more sentences.
        default: the value without the option; `...` if it must be given.
        metavar: the value's name in the help; by default its choices, or N, X, FILE or NAME.
        shown_default: the default in the help, if it is not `default`.
        ge: smallest number; le: largest number.
        hidden: True leaves the option out of the help.
    """
    bounds = _NO_BOUNDS | {"ge": ge, "le": le}
    return Option(heading, flags, help, metavar, default, shown_default, bounds, is_hidden=hidden)


class Options:
    """The values of a command's options, which a subclass declares.

    Attributes:
        given: the main flags of the options on the command line, by name.
        settings: values of the settings that were given, by section and name.
    """

    given: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]

    def __init__(self, options: Iterable[Option], values: Mapping[str, Any]) -> None:
        given: dict[str, str] = {}
        settings: dict[str, dict[str, Any]] = {}
        for each in options:
            value = values.get(each.parameter)
            if value is not None:
                given[each.name] = each.flag
            if each.section:
                section = settings.setdefault(each.section, {})
                if value is not None:
                    section[each.name] = value
            else:
                self.__dict__[each.name] = each.default if value is None else value
        self.__dict__.update(given=given, settings=settings)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the options of a command do not change: {name}")

    def setting(self, section: str, name: str) -> Any:
        """Return the value that was given for a setting, or else its built-in default."""
        default = getattr(getattr(RunConfig(), section), name)
        return self.settings[section].get(name, default)


class Command(NamedTuple):
    """A command: a function, its options, and the settings that it takes as flags.

    `settings` maps the headings of the help, in order, to settings as `section.name`. The command's
    own options precede them under each heading.
    """

    run: Callable[[Any], None]
    options: type[Options]
    settings: Mapping[str, tuple[str, ...]]
    # False leaves out short flags of settings, which have other meanings in sacreBLEU.
    has_short_flags: bool = True
    # True leaves out defaults from the help that a preset may replace.
    has_presets: bool = False
    parser: "type[TyperCommand] | None" = None

    def parsed(self, values: Mapping[str, Any]) -> Any:
        """Return the options, given the values that Typer found by the names of its parameters."""
        options = self.all_options()
        read = {each.parameter: each.read(values.get(each.parameter)) for each in options}
        return self.options(options, read)

    def all_options(self) -> list[Option]:
        """Return the command's options and those of its settings, in the order of the help."""
        own: dict[str, Option] = {}
        for each in reversed(self.options.mro()[:-2]):  # all but `Options` and `object`
            for name, kind in each.__annotations__.items():
                own[name] = _declared(name, kind, getattr(self.options, name))
        found = []
        for heading, keys in self.settings.items():
            found += [each for each in own.values() if each.heading == heading]
            found += [self._setting(heading, key) for key in keys]
        return found + [each for each in own.values() if each.is_hidden]

    def _setting(self, heading: str, key: str) -> Option:
        """Return the option of a setting."""
        section, _, name = key.partition(".")
        field = _fields(section)[name]
        flags = flags_of(key)
        if not self.has_short_flags:
            flags = tuple(flag for flag in flags if flag.startswith("--"))
        if field.type is bool:
            flags = (f"{flags[0]}/--no-{flags[0][2:]}",)
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        if self.has_presets and any(name in preset.get(section, {}) for preset in PRESETS.values()):
            default = ""
        text = str(field.metadata["help"])
        if isinstance(field.type, types.GenericAlias):
            text += " Repeatable or comma-separated." if key in _COMMA_SEPARATED else " Repeatable."
        return Option(
            heading, flags, text, METAVARS.get(key, ""), shown_default=str(default),
            bounds=field.metadata, name=name, kind=field.type, section=section,
        )  # fmt: skip


def _declared(name: str, kind: Any, option: Option) -> Option:
    """Return an option with its name and its type, which may be a union with None."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
    bounds = option.bounds
    if typing.get_origin(kind) is Literal:
        bounds, kind = {**bounds, "choices": typing.get_args(kind)}, str
    flags, default = option.flags, option.default
    shown_default = option.shown_default
    if default not in (None, ..., (), "") and not shown_default:
        shown_default = str(default)
    if kind is bool:
        shown_default = ""
        if default is True:
            flags = (f"{flags[0]}/--no-{flags[0][2:]}",)
    return option._replace(
        name=name, kind=kind, bounds=bounds, flags=flags, shown_default=shown_default
    )


def _fields(section: str) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(getattr(RunConfig(), section))}


# Options that several commands have.


def quiet_option(heading: str = "Messages", text: str = "Warnings and errors only.") -> Any:
    """Declare `--quiet`."""
    return option(heading, "--quiet", "-q", help=text, default=False)


def set_up_logging(quiet: bool, parallel: "Parallel | None" = None) -> None:
    """Log warnings, and without `--quiet` progress, on rank 0; log only errors on the others.

    That the launcher is gone is logged on each rank: rank 0 may have ended before it notices.
    """
    level = console.QUIET if quiet else console.NORMAL
    console.setup(level if parallel is None or parallel.is_main else console.SILENT)
    logging.getLogger(launcher.__name__).setLevel(logging.WARNING)


def workers_option(heading: str) -> Any:
    """Declare `--workers`."""
    return option(
        heading,
        "--workers",
        ge=0,
        le=1024,
        default=0,
        help="Worker processes on a CPU, which share the weights; 0 starts one for each core if "
        "there are enough batches.",
    )


def models_option() -> Any:
    """Declare `--model` of a command that takes several models as an ensemble."""
    return option(
        "Input",
        "--model",
        "-m",
        "--models",
        metavar="DIR",
        default=(Path("model"),),
        shown_default="model",
        help="Model directory that `tfm train` wrote. Repeat it for an ensemble, which averages "
        "the probabilities of its models.",
    )


def precision_option(heading: str) -> Any:
    """Declare `--precision` of a command that translates."""
    return option(
        heading,
        "--precision",
        default="auto",
        help="Precision of the matrix products: auto (fp32 on CPUs; bf16 on GPUs that have it), "
        "fp32, bf16, fp16 on GPUs, int8 on CPUs.",
    )._replace(bounds={**_NO_BOUNDS, "choices": DECODING_PRECISIONS}, metavar="NAME")


def cpu_threads_option() -> Any:
    """Declare `--cpu-threads`, an option of version 0.1.0: scripts that use it get a hint."""
    return option("", "--cpu-threads", hidden=True)


def refuse_cpu_threads(cpu_threads: str | None) -> None:
    """Raise a ConfigError if `--cpu-threads` was given."""
    if cpu_threads is not None:
        raise ConfigError(
            "`--cpu-threads` was removed: each process computes with one thread",
            hint="use `--workers N` for N cores",
        )


# A command must not write to the files that it reads.


def refuse_overwriting(
    output: str | Path, read: Iterable[str | Path], *, option: str = "--output"
) -> None:
    """Raise a ConfigError if the output is a file that is read, by any name or link.

    Args:
        output: path of the output; `-` is standard output.
        read: paths of the inputs; `-` is standard input.
        option: the flag that names the output.
    """
    written = _identity(output, sys.stdout)
    if written is None:
        return
    for path in read:
        if _identity(path, sys.stdin) == written:
            name = "standard output" if str(output) == "-" else str(output)
            same = "standard input" if str(path) == "-" else f"`{path}`"
            raise ConfigError(
                f"{name}: is the same file as {same}, which is read",
                hint=f"name another one with `{option}`",
            )


def model_files(path: Path) -> list[Path]:
    """Return the files that are read from a model directory, or the path itself if it is a file."""
    from tfm_cli.files.layout import CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILE
    from tfm_cli.model_directory.config_file import checkpoint_files

    if not os.path.isdir(path):  # noqa: PTH112 - it takes a name that is too long
        return [path]
    files = [path / name for name in (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES)]
    return files + checkpoint_files(path)


def _identity(path: str | Path, standard: TextIO | None) -> tuple[int, int] | None:
    """Return device and inode of a regular file; None for anything else."""
    try:
        if str(path) != "-":
            status = os.stat(path)  # noqa: PTH116 - a path with a NUL is a ValueError here
        elif standard is None:
            return None
        else:
            status = os.fstat(standard.fileno())
    except (OSError, ValueError):  # it does not exist, or has no descriptor
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None
