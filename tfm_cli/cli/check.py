"""`tfm check`: a report on parallel text before training."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from tfm_cli import console
from tfm_cli.cli.options import Command, Options, option, quiet_option, set_up_logging
from tfm_cli.config.loading import resolve
from tfm_cli.config.settings import RunConfig
from tfm_cli.console import counted
from tfm_cli.errors import CheckError, ConfigError
from tfm_cli.files.atomic import check_writable

if TYPE_CHECKING:
    from tfm_cli.corpus.check.inspection import CorpusInspection
    from tfm_cli.corpus.check.report import CorpusReport
    from tfm_cli.corpus.line_checks import Origin
    from tfm_cli.tokenizer.pair import TokenizerPair

logger = logging.getLogger(__name__)

# The name of a corpus and the files of its two sides.
Corpus = tuple[str, tuple[Sequence[str], Sequence[str]]]


class CheckOptions(Options):
    """The options of `tfm check` that are not settings."""

    test_source: tuple[str, ...] = option(
        "Test text",
        "--test-source",
        metavar="FILE",
        default=(),
        help="Test text in the source language. Repeatable.",
    )
    test_target: tuple[str, ...] = option(
        "Test text",
        "--test-target",
        metavar="FILE",
        default=(),
        help="Test text in the target language, line by line. Repeatable.",
    )
    config_file: Path | None = option(
        "Settings",
        "--config",
        "-c",
        metavar="FILE",
        help="Settings of a run, which name its files.",
    )
    model: Path | None = option(
        "Tokens",
        "--model",
        "-m",
        metavar="DIR",
        help="Count tokens with the tokenizer of this model directory.",
    )
    tokenizer: str | None = option(
        "Tokens", "--tokenizer", metavar="FILE", help="Count tokens with this SentencePiece model."
    )
    output_format: Literal["text", "json"] = option(
        "Output", "--format", "-f", default="text", help="Format of the report."
    )
    quiet: bool = quiet_option("Output", "Show no progress.")


def check(options: CheckOptions) -> None:
    """Check parallel text before training, by default the sample corpus.

    The report covers lines that do not align, broken text, blank and identical sides, lengths,
    repeated pairs, and overlap of the training text with the others; with a tokenizer, tokens too.
    The exit code is 1 if the corpus has an error.

    Example:  tfm check -s train.en -t train.de -vs dev.en -vt dev.de
    """
    set_up_logging(options.quiet)
    if options.model is not None and options.tokenizer is not None:
        raise ConfigError("`--model` and `--tokenizer` exclude each other")
    test = options.test_source, options.test_target
    if len(test[0]) != len(test[1]):
        counts = f"{len(test[1])} and {len(test[0])}"
        raise ConfigError(f"`--test-target` must be as many files as `--test-source`, got {counts}")
    config = resolve(file=options.config_file, flags=options.settings)
    check_writable("-")
    corpora = _corpora(config, test)
    tokenizers, name, origin = _tokenizers(options, config)
    max_length = config.data.max_length
    reports = _reports(
        _inspections(corpora, tokenizers, max_length=max_length), tokenizers, origin=origin
    )
    from tfm_cli.corpus.check import report as check_report

    if options.output_format == "json":
        typer.echo(check_report.as_json(reports, tokenizer=name or None, max_length=max_length))
    else:
        typer.echo(check_report.as_text(reports))
    errors = sum(one.level == "error" for report in reports for one in report.findings)
    if errors:
        raise CheckError(f"the corpus has {counted(errors, 'error')}, expected none")


def _tokenizers(
    options: CheckOptions, config: RunConfig
) -> tuple["TokenizerPair | None", str, "Origin"]:
    """Return the tokenizers with which tokens are counted, their path, and their origin."""
    path = options.tokenizer or config.tokenizer.model
    origin: Origin = "named"
    if options.model is not None or (not path and config.training.pretrained_model):
        origin, path = "model", str(options.model or config.training.pretrained_model)
    if not path:
        return None, "", origin
    from tfm_cli.model_directory.config_file import load_named_tokenizers

    return load_named_tokenizers(Path(path)), path, origin


def _corpora(config: RunConfig, test: tuple[Sequence[str], Sequence[str]]) -> list[Corpus]:
    """Return the corpora that have files; without any, those of a run on the sample corpus."""
    data = config.data
    if not data.source and not test[0]:
        from tfm_cli.training.data import with_sample_corpus

        data = with_sample_corpus(data)
        logger.info("no text is given: checking the sample corpus")
    corpora: list[Corpus] = [
        ("train", (data.source, data.target)),
        ("valid", (data.valid_source, data.valid_target)),
        ("test", test),
    ]
    return [corpus for corpus in corpora if corpus[1][0]]


def _inspections(
    corpora: Sequence[Corpus], tokenizers: "TokenizerPair | None", *, max_length: int
) -> list["CorpusInspection"]:
    """Return the inspections of all corpora, with progress over all of them."""
    from tfm_cli.corpus.check.inspection import corpus_size, inspect_corpus

    sizes = [corpus_size(paths) for _, paths in corpora]
    start = time.monotonic()
    inspections: list[CorpusInspection] = []
    with console.progress_display("checking", logger) as show:
        for index, (name, paths) in enumerate(corpora):
            before = sum(corpus.pairs for corpus in inspections)

            def report(
                pairs: int, share: float, *, index: int = index, before: int = before
            ) -> None:
                done = (sum(sizes[:index]) + share * sizes[index]) / max(1, sum(sizes))
                lines = 2 * (before + pairs)
                speed = lines / max(time.monotonic() - start, 1e-9)
                show(f"{counted(lines, 'line')}, {speed:.1f} lines/s", done)

            inspections.append(
                inspect_corpus(name, paths, tokenizers, max_length=max_length, progress=report)
            )
    return inspections


def _reports(
    inspections: Sequence["CorpusInspection"],
    tokenizers: "TokenizerPair | None",
    *,
    origin: "Origin",
) -> list["CorpusReport"]:
    """Return a report on each corpus, and close the inspections."""
    from tfm_cli.corpus.check.findings import find_problems
    from tfm_cli.corpus.check.report import CorpusReport
    from tfm_cli.corpus.check.statistics import overlap, repeats

    reports = []
    train = inspections[0] if inspections[0].name == "train" else None
    for corpus in inspections:
        twice = repeats(corpus.hashes)
        known = None
        if train is not None and corpus is not train:
            known = overlap(corpus.hashes, train.hashes)
        tags = (train or corpus).tags.counts.tags
        if tokenizers is not None:
            tags = tokenizers.source.language_tags
        findings = find_problems(corpus, twice, known, origin=origin, known_tags=tags)
        reports.append(CorpusReport(corpus, twice, known, findings, tags))
    for corpus in inspections:
        corpus.hashes.close()
    return reports


COMMAND = Command(
    check,
    CheckOptions,
    {
        "Text": ("data.source", "data.target", "data.valid_source", "data.valid_target"),
        "Test text": (),
        "Settings": (),
        "Tokens": ("data.max_length",),
        "Output": (),
    },
)
