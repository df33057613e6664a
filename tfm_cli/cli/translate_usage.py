"""What `tfm translate` refuses before its work, and what it makes of its flags."""

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tfm_cli.cli.options import check_setting
from tfm_cli.config import SearchConfig
from tfm_cli.errors import ConfigError
from tfm_cli.plain_file import open_plain
from tfm_cli.translation.input_lines import InputLine, from_columns, from_forced, from_json

logger = logging.getLogger(__name__)


def beam_size(given: int | None, *, greedy: bool, sampling: bool, n_best: int | None) -> int | None:
    """The beam size that is wanted; None for the model's own."""
    if greedy and sampling:
        raise ConfigError("`--greedy` and `--sampling` exclude each other")
    if not (greedy or sampling):
        return given
    name = "--greedy" if greedy else "--sampling"
    if given not in (None, 1):
        raise ConfigError(f"`{name}` and `--beam-size {given}` exclude each other")
    if greedy and n_best not in (None, 1):
        raise ConfigError(f"`--greedy` and `--n-best {n_best}` exclude each other")
    return 1


def check_search(chosen: Mapping[str, object], *, sampling: bool) -> None:
    """Refuse settings of the search that cannot be, and warn of those without effect.

    Args:
        chosen: what was given, by the settings' names.
        sampling: whether translations are drawn.
    """
    for name, value in chosen.items():
        check_setting(SearchConfig, name, value)
    size, best = chosen.get("beam_size"), chosen.get("n_best")
    if isinstance(size, int) and isinstance(best, int) and best > size and not sampling:
        raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {best} and {size}")
    for name in ("top_k", "top_p", "temperature", "seed"):
        if name in chosen and not sampling:
            logger.warning("`--%s` has no effect without `--sampling`", name.replace("_", "-"))


def identity(shortlist: Path | None) -> str:
    """What tells a shortlist from others; empty for none, or a file that cannot be read."""
    if shortlist is not None:
        with contextlib.suppress(OSError), open_plain(shortlist) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return ""


def input_form(
    *, force_decode: bool, tsv: bool, tsv_column: int | None, json_input: bool
) -> Callable[[str, str], InputLine]:
    """What says what stands on a line, given the line and what messages call it."""
    for name, given in (("--force-decode", force_decode), ("--tsv", tsv)):
        if json_input and given:
            raise ConfigError(f"`--json-input` and `{name}` exclude each other")
    if tsv_column is not None and not tsv:
        raise ConfigError("`--tsv-column` needs `--tsv`")
    if json_input:
        return from_json
    if tsv:
        return partial(from_columns, number=tsv_column or 1, forced=force_decode)
    if force_decode:
        return from_forced
    return lambda line, place: InputLine(line)


def search(
    settings: SearchConfig, chosen: Mapping[str, object], *, sampling: bool = False
) -> SearchConfig:
    """The model's own settings but for what was chosen; the beam has room for the n best.

    Of samples there is one unless more are asked for.
    """
    # Checked at run time against the fields' own types, which mypy cannot see.
    found = dataclasses.replace(settings, **chosen)  # type: ignore[arg-type]
    if sampling:
        return found if "n_best" in chosen else dataclasses.replace(found, n_best=1)
    if "beam_size" in chosen:
        return dataclasses.replace(found, n_best=min(found.n_best, found.beam_size))
    return dataclasses.replace(found, beam_size=max(found.n_best, found.beam_size))
