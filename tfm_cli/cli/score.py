"""`tfm score`: log-probabilities of given pairs under a model."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from tfm_cli import console
from tfm_cli.cli.options import (
    Command,
    Options,
    model_files,
    models_option,
    option,
    precision_option,
    quiet_option,
    refuse_overwriting,
    set_up_logging,
    workers_option,
)
from tfm_cli.config.settings import DataConfig
from tfm_cli.console import counted
from tfm_cli.errors import ConfigError
from tfm_cli.files.atomic import check_writable
from tfm_cli.parallel.cpu_cores import import_numpy
from tfm_cli.text.writer import open_output, write_lines

if TYPE_CHECKING:
    from tfm_cli.corpus.sources import CorpusFile
    from tfm_cli.translation.scoring import Scorer, ScorerOptions

logger = logging.getLogger(__name__)


class ScoreOptions(Options):
    """The options of `tfm score` that are not settings."""

    models: tuple[Path, ...] = models_option()
    source: str | None = option(
        "Input",
        "--source",
        "-s",
        metavar="FILE",
        help="Text in the source language, plain or compressed; - for standard input.",
    )
    target: str | None = option(
        "Input",
        "--target",
        "-t",
        metavar="FILE",
        help="Text in the target language, line by line; - for standard input.",
    )
    pairs: str | None = option(
        "Input",
        "--pairs",
        metavar="FILE",
        help="Both sides in one file, source<TAB>target (.tsv) or JSON lines with `source` and "
        "`target` (.jsonl); - for standard input.",
    )
    output_path: str = option(
        "Output",
        "--output",
        "-o",
        "--out",
        metavar="FILE",
        default="-",
        help="Scores; - for standard output.",
    )
    output_format: Literal["text", "json"] = option(
        "Output", "--format", "-f", default="text", help="Plain text, or one JSON object a line."
    )
    word_scores: bool = option(
        "Output",
        "--word-scores",
        default=False,
        help="Also write the log-probability of each token, the end of the segment included.",
    )
    max_tokens: int = option(
        "Speed",
        "--max-tokens",
        "--mini-batch-words",
        default=4096,
        ge=1,
        le=1_000_000_000,
        help="Target tokens in a batch.",
    )
    buffer_size: int = option(
        "Speed",
        "--buffer-size",
        "--maxi-batch",
        default=4096,
        ge=1,
        le=1_000_000_000,
        help="Pairs read ahead, sorted by length and scored together.",
    )
    precision: str = precision_option("Speed")
    workers: int = workers_option("Speed")
    quiet: bool = quiet_option()


def score(options: ScoreOptions) -> None:
    """Score given translations by their log-probability under a model.

    Each pair gives one line, in order. The score is that of `tfm translate --with-score`: the
    log-probability divided by a power of the number of tokens; with `--length-penalty 0` it is
    the log-probability itself.

    Example:  tfm score --model model -s train.en -t train.de > scores
    """
    set_up_logging(options.quiet)
    corpus = _corpus_file(options)
    check_writable(options.output_path)
    read = [file for directory in options.models for file in model_files(directory)]
    refuse_overwriting(options.output_path, [*_paths(options), *read])
    from tfm_cli.model_directory.config_file import prefetch_weights_hash

    for directory in options.models:
        prefetch_weights_hash(directory)
    import_numpy()
    from tfm_cli.translation.scoring import Scorer

    with open_output(options.output_path) as stream:
        scorer = Scorer.load(
            options.models,
            _scorer_options(options, corpus),
            device=options.setting("training", "device"),
            precision=options.precision,
            workers=options.workers,
        )
        done = _write_scores(options, corpus, scorer, stream)
    for note in scorer.notes():
        logger.warning("%s: %s", corpus.name, note)
    logger.info("scored %s", done)


def _write_scores(
    options: ScoreOptions, corpus: "CorpusFile", scorer: "Scorer", stream: BinaryIO
) -> str:
    """Write a line for each pair, and return how many pairs were scored at what speed."""
    from tfm_cli.corpus.parallel_text import read_corpus
    from tfm_cli.translation.scoring import as_json, as_text

    num_pairs = num_tokens = 0
    share: float | None = None
    began = time.monotonic()

    def seconds() -> float:
        return max(time.monotonic() - began, 1e-9)

    def keep_share(words: str, read_share: float | None) -> None:
        nonlocal share
        share = read_share

    with _progress(options) as show:
        pairs = read_corpus((corpus,), bad_utf8="replace", show=keep_share)
        for scored in scorer.score(pairs):
            write_lines(
                stream,
                (
                    as_json(pair, one, word_scores=options.word_scores)
                    if options.output_format == "json"
                    else as_text(one, word_scores=options.word_scores)
                    for pair, one in scored
                ),
            )
            stream.flush()
            num_pairs += len(scored)
            num_tokens += sum(one.num_tokens for _, one in scored)
            show(f"{counted(num_pairs, 'pair')}, {num_pairs / seconds():.1f} pairs/s", share)
    return (
        f"{counted(num_pairs, 'pair')} in {seconds():.1f} s: {num_pairs / seconds():.1f} pairs/s, "
        f"{num_tokens / seconds():.0f} target tokens/s"
    )


@contextlib.contextmanager
def _progress(options: ScoreOptions) -> Iterator[console.Show]:
    """Yield a function that shows the progress, unless the scores go to the same terminal."""
    if options.output_path == "-" and sys.stderr.isatty() and sys.stdout.isatty():
        yield lambda words, share: None
        return
    in_lines = options.output_path == "-" and console.writes_to_pipe()
    with console.progress_display("scoring", logger, in_lines=in_lines) as show:
        yield show


def _paths(options: ScoreOptions) -> list[str]:
    return [path for path in (options.source, options.target, options.pairs) if path is not None]


def _corpus_file(options: ScoreOptions) -> "CorpusFile":
    """Return the input.

    Raises:
        ConfigError: it is missing or given twice, or the format of its pairs is unknown.
    """
    from tfm_cli.corpus.sources import STANDARD_INPUT, CorpusFile, training_files

    sides = {"--source": options.source, "--target": options.target}
    given = [flag for flag, path in sides.items() if path is not None]
    if options.pairs is not None and given:
        raise ConfigError(f"`--pairs` and `{given[0]}` exclude each other")
    if options.pairs is not None:
        pairs_format = options.setting("data", "pairs_format")
        return training_files(DataConfig(pairs=(options.pairs,), pairs_format=pairs_format))[0]
    if len(given) < 2:
        missing = " and ".join(f"`{flag}`" for flag in sides if flag not in given)
        verb = "are" if len(given) == 0 else "is"
        raise ConfigError(f"{missing} {verb} missing", hint="or give both sides with `--pairs`")
    if "pairs_format" in options.given:
        raise ConfigError("`--pairs-format` needs `--pairs`")
    paths = tuple(path for path in sides.values() if path is not None)
    if paths == ("-", "-"):
        raise ConfigError(
            "standard input can be read only once, and is both `--source` and `--target`",
            hint="give both sides with `--pairs - --pairs-format tsv`",
        )
    names = tuple(STANDARD_INPUT if path == "-" else path for path in paths)
    return CorpusFile(paths, names, "lines")


def _scorer_options(options: ScoreOptions, corpus: "CorpusFile") -> "ScorerOptions":
    from tfm_cli.translation.scoring import ScorerOptions

    return ScorerOptions(
        length_penalty=options.settings["search"].get("length_penalty"),
        length_norm=options.settings["search"].get("length_norm"),
        word_scores=options.word_scores,
        max_tokens=options.max_tokens,
        buffer_size=options.buffer_size,
        names=(corpus.names[0], corpus.names[-1]),
    )


COMMAND = Command(
    score,
    ScoreOptions,
    {
        "Input": ("data.pairs_format",),
        "Output": (),
        "Score": ("search.length_penalty", "search.length_norm"),
        "Speed": ("training.device",),
        "Messages": (),
    },
)
