"""What `tfm evaluate --model` does: it translates, and may keep the translations."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfm_cli.text_output import open_output, write_lines


def translate(
    lines: Sequence[str],
    model: Path,
    search: Mapping[str, float | None],
    *,
    name: str,
    device: str,
    precision: str,
    workers: int,
) -> list[str]:
    """The model's best translations, searched for as it was set up to but for what is given.

    Args:
        lines: to translate.
        model: directory.
        search: settings of the search, None where they are the model's own.
        name: what warnings call the lines.
        device: where to compute.
        precision: of the arithmetic.
        workers: processes, see `Translator.load`.
    """
    from tfm_cli.model_config import load_config
    from tfm_cli.translation.translator import Translator

    given = {name: value for name, value in search.items() if value is not None}
    settings = load_config(model)[0].search
    # Checked at run time against the fields' own types, which mypy cannot see.
    settings = dataclasses.replace(settings, n_best=1, **given)  # type: ignore[arg-type]
    translator = Translator.load(
        model, search=settings, device=device, precision=precision, workers=workers, scores=False
    )
    return [translation.text for translation in translator.translate(lines, name=name)]


def keep(translations: Sequence[str], output: Path) -> None:
    """Write translations to a file, one a line."""
    with open_output(output) as stream:
        write_lines(stream, translations)
