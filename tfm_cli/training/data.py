"""The text of a run: its files, tokenizers and prepared corpora."""

import contextlib
import dataclasses
import hashlib
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tfm_cli.config.settings import DataConfig, RunConfig
from tfm_cli.console import counted, progress_display
from tfm_cli.corpus.batching import Sampling
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.line_checks import (
    MAX_CHANGED,
    MAX_UNKNOWN,
    LinePosition,
    Origin,
    SourceTags,
    describe_unknown_tag,
    describe_untagged,
    hint_for_changed,
    hint_for_unknown,
)
from tfm_cli.corpus.parallel_text import check_files, read_corpus, read_pairs
from tfm_cli.corpus.prepare import cached_store, remove_stale, removed_on_failure
from tfm_cli.corpus.sampling import SubwordSampling
from tfm_cli.corpus.sources import CorpusFile, sample_path, training_files
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.errors import ConfigError, DataError, ResourceError
from tfm_cli.evaluation.bleu_tokenizer import check_available
from tfm_cli.files import durable
from tfm_cli.files.atomic import temporary_file
from tfm_cli.files.layout import CORPUS
from tfm_cli.model_directory.config_file import load_named_tokenizers
from tfm_cli.text.language_tags import NO_TAGS, TagCounts, listed
from tfm_cli.text.reader import held_in_memory, open_lines
from tfm_cli.tokenizer.normalization import check_rule
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.sampling import SAMPLED_ALGORITHMS
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

logger = logging.getLogger(__name__)

Pairs = list[tuple[str, str]]

_WINDOW_LINES = 4096


@dataclass(frozen=True, slots=True)
class Corpora:
    """The tokenizers and the encoded text of a run."""

    tokenizers: TokenizerPair
    train: CorpusStore
    valid: CorpusStore | None  # None without validation text
    valid_pairs: Pairs  # raw lines
    prepared: Path | None = None  # the folder of the training text; None if runs share it

    def sampling(self, config: RunConfig) -> Sampling | None:
        """Return what samples the segmentations of the training text; None if they are fixed."""
        data = config.data
        if data.subword_sampling == "none":
            return None
        return SubwordSampling(
            self.train, self.tokenizers, sides=data.subword_sampling, alpha=data.subword_alpha,
            seed=config.training.seed, max_length=data.max_length,
        ).text  # fmt: skip

    def sha256(self) -> dict[str, str]:
        """Return a hash of the training text and of the validation text, by name."""
        valid = pairs_sha256(self.valid_pairs)
        return {"training text": self.train.sha256(), "validation text": valid}

    def remove_outdated(self) -> None:
        """Remove the prepared text of earlier versions of the training text."""
        if self.prepared is not None:
            remove_stale(self.prepared)


def pairs_sha256(pairs: Pairs) -> str:
    """Return the SHA-256 of a validation text, by which a run recognizes it."""
    digest = hashlib.sha256()
    for source, target in pairs:
        digest.update(f"{source}\n{target}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def check_inputs(config: RunConfig, *, needs_tokenizer: bool = True) -> None:
    """Raise an error if an input of a run is missing or invalid, before any work.

    Args:
        config: all settings, with the paths of the files.
        needs_tokenizer: this process loads or trains the tokenizer; a resumed run has it already.

    Raises:
        DataError: a text is missing or cannot be read twice, or normalization rules are invalid.
        ModelError: `tokenizer.model` is not a tokenizer.
        ResourceError: the sample corpus is not installed, or a package or a file is missing that
            the tokenizer of BLEU needs.
    """
    data = with_sample_corpus(config.data)
    training_files(data)
    pairs = tuple(path for path in data.pairs if path != "-")
    check_files(data.source + data.target + pairs + data.valid_source + data.valid_target)
    if config.tokenizer.model and needs_tokenizer:
        _named_tokenizers(config)
    elif needs_tokenizer and not config.training.pretrained_model:
        check_rule(config.tokenizer.normalization_rule_name)
    if data.valid_target and "bleu" in config.validation.metrics:
        check_available(config.validation.tokenize)


def load_corpora(config: RunConfig, tokenizers: TokenizerPair | None, output: Path) -> Corpora:
    """Read, check and encode the training and validation text; train a tokenizer if needed.

    Training text that was prepared before is not read again, unless a tokenizer is trained.

    Args:
        config: all settings; the sample corpus is used if they name no training text.
        tokenizers: those that exist already, as in a resumed run; None to load or train them.
        output: the model directory, which holds prepared text unless the settings name another
            directory.

    Raises:
        DataError: a file is missing, malformed, misaligned or has no usable pair.
        ConfigError: the tokenizer lacks a tag of the settings, or the weights of the corpora leave
            less than one pair per epoch.
        ResourceError: the prepared text cannot be written.
    """
    data = with_sample_corpus(config.data)
    cache = Path(data.cache) if data.cache else output / CORPUS
    with _files_on_disk(data, cache) as files:
        # Validation text is small: its errors are reported before the training text is read.
        valid_pairs = _read_validation(data, files)
        trains_tokenizer = tokenizers is None and not config.tokenizer.model
        if tokenizers is None:
            tokenizers = _make_tokenizers(config, files)
        _check_tags(data, tokenizers.source)
        _check_sampling(data, tokenizers)
        train, directory = cached_store(
            cache,
            files,
            tokenizers,
            Filters.of(data),
            weights=data.weights,
            workers=data.workers,
            warn=not trains_tokenizer,
        )
    # Otherwise epochs without any pair would be skipped without a message.
    epoch_pairs = sum((span.end - span.first) * span.weight for span in train.spans)
    if epoch_pairs < 1:
        raise ConfigError(
            f"data.weights: an epoch would have {epoch_pairs:.2g} of {len(train)} pairs, expected "
            "at least 1",
            hint="set them higher",
        )
    logger.info(
        "training text: %s, %d + %d tokens%s",
        counted(len(train), "pair"),
        train.source.lengths.sum(),
        train.target.lengths.sum(),
        _dropped(train),
    )
    _log_round_trips(train, tokenizers, files, _origin(config))
    advice = ""
    if trains_tokenizer and not data.tags:
        advice = "list them in `data.tags` if they are tags"
    _warn_of_tags(train.tags, tokenizers.source, [file.name for file in files], advice=advice)
    _warn_of_validation_tags(data.valid_source, tokenizers.source)
    valid = None
    if valid_pairs:
        valid = CorpusStore.build(
            valid_pairs, tokenizers, max_length=data.max_length, name=", ".join(data.valid_source)
        )
        pairs = counted(len(valid_pairs), "pair")
        logger.info("validation text: %s%s", pairs, _dropped(valid))
    own = None if data.cache else directory
    return Corpora(tokenizers, train, valid, valid_pairs, own)


def _check_tags(data: DataConfig, tokenizer: Tokenizer) -> None:
    """Raise a ConfigError if the settings name tags that the tokenizer lacks."""
    missing = [tag for tag in data.tags if tag not in (NO_TAGS, *tokenizer.language_tags)]
    if missing:
        raise ConfigError(
            f"data.tags: the tokenizer has no piece for {listed(missing)}",
            hint="leave them out, or train a tokenizer with them",
        )


def _check_sampling(data: DataConfig, tokenizers: TokenizerPair) -> None:
    """Raise a ConfigError if the settings sample with a tokenizer that has no choice.

    Warn if a setting of the sampling has no effect.
    """
    for side, tokenizer in (("source", tokenizers.source), ("target", tokenizers.target)):
        kind = tokenizer.algorithm
        if data.subword_sampling in (side, "both") and kind not in SAMPLED_ALGORITHMS:
            raise ConfigError(
                f"data.subword_sampling: the tokenizer of the {side} is of type `{kind}`, which "
                "cuts text in one way only",
                hint="use `tokenizer.model_type` unigram or bpe, or leave the setting out",
            )
    if data.subword_alpha and data.subword_sampling == "none":
        logger.warning("`data.subword_alpha` is ignored: `data.subword_sampling` is none")


def _warn_of_tags(
    tags: SourceTags, tokenizer: Tokenizer, names: Sequence[str], *, advice: str = ""
) -> None:
    """Warn of source lines whose language tag is missing or unknown.

    Args:
        tags: the counts.
        tokenizer: the tokenizer of the source.
        names: the names of the files.
        advice: added if the tokenizer has no tags.
    """
    known = tokenizer.language_tags
    kinds = [(tags.untagged, tags.first_untagged, describe_untagged(known) if known else "")]
    words = describe_unknown_tag(tokenizer) + (f"; {advice}" if advice and not known else "")
    kinds.append((tags.unknown, tags.first_unknown, words))
    for count, first, description in kinds:
        if first is not None:
            name = names[first.file] if first.file < len(names) else "?"
            have = "has" if count == 1 else "have"
            logger.warning(
                "%s:%d: %d of %d source lines %s %s",
                name, first.line, count, tags.lines, have, description,
            )  # fmt: skip


def _numbered(file: int, first: int, index: int) -> tuple[int, int]:
    return file, first + index


def _warn_of_validation_tags(paths: Sequence[str], tokenizer: Tokenizer) -> None:
    tags = SourceTags()
    for file, path in enumerate(paths):
        with open_lines(path, invalid="replace") as reader:
            while lines := reader.window(_WINDOW_LINES):
                first = reader.num_lines - len(lines) + 1
                tags.add(tokenizer, lines, position=partial(_numbered, file, first))
    _warn_of_tags(tags, tokenizer, paths)


@contextlib.contextmanager
def _files_on_disk(data: DataConfig, cache: Path) -> Iterator[tuple[CorpusFile, ...]]:
    """Yield the training files; standard input is copied to a file, since text is read twice."""
    if "-" not in data.pairs:
        yield training_files(data)
        return
    if sys.stdin is None:
        raise DataError("standard input: cannot be read: it is closed")
    with removed_on_failure(cache), contextlib.ExitStack() as held:
        try:
            durable.make_directory(cache)
            copy, stream = held.enter_context(temporary_file(cache / "stdin"))
            shutil.copyfileobj(sys.stdin.buffer, stream, 1 << 20)
            stream.flush()
        except OSError as error:
            raise ResourceError(f"{cache}: cannot be written: {error.strerror}") from error
        yield training_files(data, standard_input=str(copy))


def with_sample_corpus(data: DataConfig) -> DataConfig:
    """Return the settings, with the files of the sample corpus if none is named."""
    if data.source or data.pairs:
        return data
    return dataclasses.replace(
        data,
        source=(sample_path("train.en"),),
        target=(sample_path("train.fr"),),
        valid_source=(sample_path("valid.en"),),
        valid_target=(sample_path("valid.fr"),),
    )


def read_validation(data: DataConfig) -> Pairs:
    """Return the lines of the validation text.

    Raises:
        DataError: it is missing, malformed or misaligned.
    """
    name = ", ".join(data.valid_source)
    return held_in_memory(read_pairs(data.valid_source, data.valid_target), name)


def _read_validation(data: DataConfig, files: Sequence[CorpusFile]) -> Pairs:
    try:
        pairs = read_validation(data)
    except DataError as error:
        errors = [error]
        try:  # the errors of the training text are reported as well
            for _ in read_corpus(files, bad_utf8=data.bad_utf8, warn=False):
                pass
        except DataError as another:
            errors.append(another)
        raise DataError("\n  ".join(str(each) for each in errors), hint=error.hint) from error
    if data.valid_source and not pairs:
        raise DataError(f"{', '.join(data.valid_source)}: has no lines")
    return pairs


def _make_tokenizers(config: RunConfig, files: Sequence[CorpusFile]) -> TokenizerPair:
    if config.tokenizer.model:
        tokenizers = _named_tokenizers(config)
        logger.info("tokenizer: %s, %d tokens", config.tokenizer.model, tokenizers.vocab_sizes[1])
        return tokenizers
    if config.tokenizer.joint:
        return TokenizerPair.joint(_train(config, files, (0, 1), "tokenizer"))
    return TokenizerPair(
        _train(config, files, (0,), "source tokenizer"),
        _train(config, files, (1,), "target tokenizer"),
    )


def _train(
    config: RunConfig, files: Sequence[CorpusFile], sides: tuple[int, ...], name: str
) -> Tokenizer:
    counts = TagCounts()
    lines = _lines(files, sides=sides, bad_utf8=config.data.bad_utf8, counts=counts)
    given = config.data.tags

    def tags() -> Sequence[str]:
        if 0 not in sides or given == (NO_TAGS,):
            return ()
        return given or counts.tags

    model_bytes = train_tokenizer(
        lines, config.tokenizer, seed=config.training.seed, soft_limit=True, tags=tags
    )
    tokenizer = Tokenizer(model_bytes, name=name)
    if known := tokenizer.language_tags:
        logger.info("%s: language tags, one token each: %s", name, listed(known))
    logger.info("%s: learned a vocabulary of %d tokens", name, tokenizer.vocab_size)
    return tokenizer


def _named_tokenizers(config: RunConfig) -> TokenizerPair:
    """Return the tokenizers of a `.model` file or of a model directory."""
    path = Path(config.tokenizer.model)
    tokenizers = load_named_tokenizers(path)
    if config.model.tied_embeddings & 1 and not tokenizers.shares_vocabulary:
        raise ConfigError(
            f"{path}: the sides have different vocabularies, which the model would share",
            hint="set `model.tied_embeddings` to 2 or 0",
        )
    return tokenizers


def _lines(
    files: Sequence[CorpusFile], *, sides: tuple[int, ...], bad_utf8: str, counts: TagCounts
) -> Iterator[str]:
    """Yield the lines of some sides of all files, and count the tags of source lines."""
    has_text = False
    with progress_display("reading text to train a tokenizer", logger) as show:
        for pair in read_corpus(files, bad_utf8=bad_utf8, warn=0 in sides, show=show):
            has_text = has_text or bool(pair[0].strip() or pair[1].strip())
            counts.add(pair[0])
            for side in sides:
                yield pair[side]
    if not has_text:
        names = ", ".join(name for file in files for name in file.names)
        raise DataError(f"{names}: no line has any text")


def _origin(config: RunConfig) -> Origin:
    if config.training.pretrained_model:
        return "model"
    return "named" if config.tokenizer.model else "learned"


def _log_round_trips(
    store: CorpusStore, tokenizers: TokenizerPair, files: Sequence[CorpusFile], origin: Origin
) -> None:
    """Log unknown tokens, and lines that change when they are tokenized and detokenized."""
    sides = zip(
        ("source", "target"),
        (tokenizers.source, tokenizers.target),
        store.round_trips,
        strict=False,
    )
    for index, (side, tokenizer, trip) in enumerate(sides):
        many = f"{trip.changed} of {trip.lines} {side} lines ({_percent(trip.changed, trip.lines)})"
        first = trip.first_unknown
        if first is not None:
            message = f"{trip.unknown} of {trip.pieces} {side} tokens are unknown "
            message += f"({_percent(trip.unknown, trip.pieces)})"
            if trip.is_explained(tokenizer):
                message += f", the tokenizer changes {many}"
            message += f", first {_position(first, index, files)}: `{first.text}`"
            is_severe = trip.unknown > MAX_UNKNOWN * trip.pieces
            _log_difference(message, hint_for_unknown(origin), is_severe=is_severe)
        first = trip.first_changed
        if first is not None and not trip.is_explained(tokenizer):
            message = f"the tokenizer changes {many}, first {_position(first, index, files)}: "
            message += f"`{first.text}` becomes `{first.becomes}`"
            is_severe = trip.changed > MAX_CHANGED * trip.lines
            _log_difference(message, hint_for_changed(origin, tokenizer), is_severe=is_severe)


def _log_difference(message: str, advice: str, *, is_severe: bool) -> None:
    level = logging.WARNING if is_severe else logging.INFO
    logger.log(level, "training text: %s; %s", message, advice)


def _percent(count: int, whole: int) -> str:
    return f"{100 * count / max(1, whole):.1f} %"


def _position(line: LinePosition, side: int, files: Sequence[CorpusFile]) -> str:
    names = files[line.file].names if line.file < len(files) else ("?",)
    return f"{names[min(side, len(names) - 1)]}:{line.line}"


def _dropped(store: CorpusStore) -> str:
    return "".join(
        f", {count} dropped: {reason}" for reason, count in sorted(store.dropped.items()) if count
    )
