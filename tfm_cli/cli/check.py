"""`tfm check`: what is wrong with a corpus, before anyone pays for learning from it."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tfm_cli import console
from tfm_cli.cli.options import flag
from tfm_cli.config.loading import resolve
from tfm_cli.config.settings import DataConfig, RunConfig
from tfm_cli.errors import CheckError, ConfigError
from tfm_cli.files.atomic import check_writable

if TYPE_CHECKING:
    from tfm_cli.corpus.check.inspection import CorpusInspection
    from tfm_cli.corpus.check.report import CorpusReport
    from tfm_cli.corpus.line_checks import Origin
    from tfm_cli.tokenizer.pair import TokenizerPair

logger = logging.getLogger(__name__)

_MANY = "Repeatable."

# Name and the files of its two sides.
Corpus = tuple[str, tuple[Sequence[str], Sequence[str]]]


def check(
    source: Annotated[
        list[str] | None, flag(DataConfig, "source", "--source", "-s", extra=_MANY, metavar="FILE")
    ] = None,
    target: Annotated[
        list[str] | None, flag(DataConfig, "target", "--target", "-t", extra=_MANY, metavar="FILE")
    ] = None,
    valid_source: Annotated[
        list[str] | None,
        flag(DataConfig, "valid_source", "--valid-source", "-vs", extra=_MANY, metavar="FILE"),
    ] = None,
    valid_target: Annotated[
        list[str] | None,
        flag(DataConfig, "valid_target", "--valid-target", "-vt", extra=_MANY, metavar="FILE"),
    ] = None,
    test_source: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help=f"Test text in the source language. {_MANY}"),
    ] = None,
    test_target: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help=f"Its translation, line by line. {_MANY}"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", metavar="DIR", help="Count in the pieces of this model directory."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Count in the pieces of this SentencePiece model."),
    ] = None,
    max_length: Annotated[int | None, flag(DataConfig, "max_length")] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="A run's settings, which name its files."
        ),
    ] = None,
    output_format: Annotated[
        Literal["text", "json"], typer.Option("--format", "-f", help="How the report is printed.")
    ] = "text",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Report on parallel text before learning from it; without files, on the sample corpus.

    Lines that do not align, broken text, blank and identical sides, lengths, repeated pairs,
    overlap of the training text with the others; with a tokenizer, pieces. The exit code is 1 where
    something would spoil a run.

    \b
    Example:  tfm check -s train.en -t train.de --valid-source dev.en --valid-target dev.de
    """
    console.setup(console.QUIET if quiet else console.NORMAL)
    if model is not None and tokenizer is not None:
        raise ConfigError("`--model` and `--tokenizer` exclude each other")
    test = test_source or [], test_target or []
    if len(test[0]) != len(test[1]):
        counts = f"{len(test[1])} and {len(test[0])}"
        raise ConfigError(f"`--test-target` must be as many files as `--test-source`, got {counts}")
    config = resolve(
        file=config_file,
        flags={
            "data": {
                "source": source or None,
                "target": target or None,
                "valid_source": valid_source or None,
                "valid_target": valid_target or None,
                "max_length": max_length,
            },
        },
    )
    check_writable("-")
    corpora = _corpora(config, test)
    named = str(model) if model is not None else tokenizer or config.tokenizer.model
    origin: Origin = "named"
    if model is not None or (not named and config.training.pretrained_model):
        origin, named = "model", str(model or config.training.pretrained_model)
    tokenizers = None
    if named:
        from tfm_cli.model_directory.config_file import load_named_tokenizers

        tokenizers = load_named_tokenizers(Path(named))
    from tfm_cli.corpus.check import report as check_report

    reports = _reports(corpora, tokenizers, config.data.max_length, origin)
    if output_format == "json":
        limit = config.data.max_length
        typer.echo(check_report.as_json(reports, tokenizer=named or None, max_length=limit))
    else:
        typer.echo(check_report.as_text(reports))
    errors = sum(one.level == "error" for report in reports for one in report.findings)
    if errors:
        raise CheckError(
            f"the corpus has {console.counted(errors, 'error')} that would spoil a run"
        )


def _corpora(config: RunConfig, test: tuple[list[str], list[str]]) -> list[Corpus]:
    """The corpora that are named; without any, those of a run on the sample corpus."""
    data = config.data
    if not data.source and not test[0]:
        from tfm_cli.training.data import with_sample_corpus

        data = with_sample_corpus(data)
        logger.info("no text is named: checking the sample corpus")
    named: list[Corpus] = [
        ("train", (data.source, data.target)),
        ("valid", (data.valid_source, data.valid_target)),
        ("test", test),
    ]
    return [corpus for corpus in named if corpus[1][0]]


def _reports(
    corpora: Sequence[Corpus],
    tokenizers: "TokenizerPair | None",
    max_length: int,
    origin: "Origin",
) -> list["CorpusReport"]:
    from tfm_cli.corpus.check.findings import find_problems
    from tfm_cli.corpus.check.inspection import corpus_size, inspect_corpus
    from tfm_cli.corpus.check.report import CorpusReport
    from tfm_cli.corpus.check.statistics import overlap, repeats

    sizes = [corpus_size(paths) for _, paths in corpora]
    began = time.monotonic()
    found: list[CorpusInspection] = []
    with console.shown_progress("checking", logger) as show:
        for index, (name, paths) in enumerate(corpora):
            before = sum(corpus.pairs for corpus in found)

            def tell(pairs: int, share: float, *, index: int = index, before: int = before) -> None:
                done = (sum(sizes[:index]) + share * sizes[index]) / max(1, sum(sizes))
                lines = 2 * (before + pairs)
                speed = lines / max(time.monotonic() - began, 1e-9)
                show(f"{console.counted(lines, 'line')}, {speed:.1f} lines/s", done)

            inspected = inspect_corpus(
                name, paths, tokenizers, max_length=max_length, progress=tell
            )
            found.append(inspected)
    reports = []
    train = found[0] if found[0].name == "train" else None
    for corpus in found:
        twice = repeats(corpus.hashes)
        known = None
        if train is not None and corpus is not train:
            known = overlap(corpus.hashes, train.hashes)
        tags = (train or corpus).tags.counts.tags
        if tokenizers is not None:
            tags = tokenizers.source.language_tags
        findings = find_problems(corpus, twice, known, origin=origin, known_tags=tags)
        reports.append(CorpusReport(corpus, twice, known, findings, tags))
    for corpus in found:
        corpus.hashes.close()
    return reports
