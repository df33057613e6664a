"""The texts of a run: which files, their tokenizer, and their pieces."""

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
from tfm_cli.console import counted, shown_progress
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
from tfm_cli.tokenizer.tokenizer import Tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

Pairs = list[tuple[str, str]]

_LINES_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class Corpora:
    """All text of a run, ready to be learned from."""

    tokenizers: TokenizerPair
    train: CorpusStore
    valid: CorpusStore | None  # None without validation text
    valid_pairs: Pairs  # raw lines
    prepared: Path | None = None  # the training text's folder, where it belongs to the run alone

    def sha256(self) -> dict[str, str]:
        """A hash of each text by what it is for."""
        digest = hashlib.sha256()
        for source, target in self.valid_pairs:
            digest.update(f"{source}\n{target}\n".encode("utf-8", "surrogatepass"))
        return {"training text": self.train.sha256(), "validation text": digest.hexdigest()}

    def forget_older(self) -> None:
        """Remove what the run has prepared of text that it learns from no more."""
        if self.prepared is not None:
            remove_stale(self.prepared)


def check_inputs(config: RunConfig, *, learns: bool = True) -> None:
    """Raise an error that names every file of a run that cannot be read; before any work.

    Args:
        config: names the files.
        learns: whether this process learns the tokenizer, unless there is one.

    Raises:
        DataError: text that is missing or cannot be read twice, or no rules of normalization.
        ModelError: the tokenizer that was named is none.
        ResourceError: the sample corpus is wanted, but not installed; or a package or a file that
            the tokenizer of BLEU needs.
    """
    data = with_sample(config.data)
    training_files(data)
    pairs = tuple(path for path in data.pairs if path != "-")
    check_files(data.source + data.target + pairs + data.valid_source + data.valid_target)
    if config.tokenizer.model:
        _named_tokenizers(config)
    elif learns and not config.training.pretrained_model:
        check_rule(config.tokenizer.normalization_rule_name)
    if data.valid_target and "bleu" in config.validation.metrics:
        check_available(config.validation.tokenize)


def load_corpora(config: RunConfig, tokenizers: TokenizerPair | None, output: Path) -> Corpora:
    """Read, check and encode the training and validation text; learn a tokenizer if need be.

    Training text that was prepared before is not read again, unless a tokenizer is to be learned.

    Args:
        config: names the files; without any, the sample corpus is taken.
        tokenizers: those that are settled already, as when a run goes on.
        output: the model's folder, in which prepared text is kept unless the settings name
            another place.

    Raises:
        DataError: a file is missing, malformed, misaligned or has no usable pair.
        ConfigError: the weights leave less than a pair for an epoch.
        ResourceError: the prepared text cannot be written.
    """
    data = with_sample(config.data)
    cache = Path(data.cache) if data.cache else output / CORPUS
    with _files_on_disk(data, cache) as files:
        # Validation text is small: what is wrong with it should show before the long reading.
        valid_pairs = _read_validation(data, files)
        learns_tokenizer = tokenizers is None and not config.tokenizer.model
        if tokenizers is None:
            tokenizers = _make_tokenizers(config, files)
        _check_tags(data, tokenizers.source)
        train, directory = cached_store(
            cache,
            files,
            tokenizers,
            Filters.of(data),
            weights=data.weights,
            workers=data.workers,
            warn=not learns_tokenizer,
        )
    # Epochs without a pair would be passed over, one after the other, without a word.
    an_epoch = sum((span.end - span.first) * span.weight for span in train.spans)
    if an_epoch < 1:
        raise ConfigError(
            f"data.weights: an epoch would have {an_epoch:.2g} of {len(train)} pairs, wanted 1",
            hint="set them higher",
        )
    logger.info(
        "training text: %s, %d + %d pieces%s",
        counted(len(train), "pair"),
        train.source.lengths.sum(),
        train.target.lengths.sum(),
        _dropped(train),
    )
    _tell_losses(train, tokenizers, files, _origin(config))
    advice = ""
    if learns_tokenizer and not data.tags:
        advice = "list them in `data.tags` if they are tags"
    _tell_tags(train.tags, tokenizers.source, [file.name for file in files], advice=advice)
    _tell_tags_of_validation(data.valid_source, tokenizers.source)
    valid = None
    if valid_pairs:
        valid = CorpusStore.build(
            valid_pairs, tokenizers, max_length=data.max_length, name=", ".join(data.valid_source)
        )
        told = counted(len(valid_pairs), "pair") + _dropped(valid)
        logger.info("validation text: %s", told)
    own = None if data.cache else directory
    return Corpora(tokenizers, train, valid, valid_pairs, own)


def _check_tags(data: DataConfig, tokenizer: Tokenizer) -> None:
    """Raise a ConfigError if the settings name tags that the tokenizer has not."""
    lacking = [tag for tag in data.tags if tag not in (NO_TAGS, *tokenizer.language_tags)]
    if lacking:
        raise ConfigError(
            f"data.tags: the tokenizer has no piece for {listed(lacking)}",
            hint="leave them out, or learn a tokenizer with them",
        )


def _tell_tags(
    tags: SourceTags, tokenizer: Tokenizer, names: Sequence[str], *, advice: str = ""
) -> None:
    """Warn of source lines whose language tag is missing or unknown.

    Args:
        tags: what was counted.
        tokenizer: of the source.
        names: of the files.
        advice: what to do where the tokenizer knows no tags.
    """
    known = tokenizer.language_tags
    kinds = [(tags.untagged, tags.first_untagged, describe_untagged(known) if known else "")]
    words = describe_unknown_tag(tokenizer) + (f"; {advice}" if advice and not known else "")
    kinds.append((tags.unknown, tags.first_unknown, words))
    for count, first, told in kinds:
        if first is not None:
            name = names[first.file] if first.file < len(names) else "?"
            have = "has" if count == 1 else "have"
            logger.warning(
                "%s:%d: %d of %d source lines %s %s",
                name, first.line, count, tags.lines, have, told,
            )  # fmt: skip


def _numbered(file: int, first: int, index: int) -> tuple[int, int]:
    return file, first + index


def _tell_tags_of_validation(paths: Sequence[str], tokenizer: Tokenizer) -> None:
    tags = SourceTags()
    for file, path in enumerate(paths):
        with open_lines(path, invalid="replace") as reader:
            while lines := reader.window(_LINES_AT_A_TIME):
                first = reader.num_lines - len(lines) + 1
                tags.add(tokenizer, lines, place=partial(_numbered, file, first))
    _tell_tags(tags, tokenizer, paths)


@contextlib.contextmanager
def _files_on_disk(data: DataConfig, cache: Path) -> Iterator[tuple[CorpusFile, ...]]:
    """The training files; what comes on standard input is copied, since text is read twice."""
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
            told = f"{cache}: cannot be written: {error.strerror}"
            raise ResourceError(told) from error
        yield training_files(data, standard_input=str(copy))


def with_sample(data: DataConfig) -> DataConfig:
    """The files as they are, or those of the sample corpus where none is named."""
    if data.source or data.pairs:
        return data
    return dataclasses.replace(
        data,
        source=(sample_path("train.en"),),
        target=(sample_path("train.fr"),),
        valid_source=(sample_path("valid.en"),),
        valid_target=(sample_path("valid.fr"),),
    )


def _read_validation(data: DataConfig, files: Sequence[CorpusFile]) -> Pairs:
    try:
        name = ", ".join(data.valid_source)
        pairs = held_in_memory(read_pairs(data.valid_source, data.valid_target), name)
    except DataError as error:
        errors = [error]
        try:  # what is wrong with the training text should be told as well
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
        logger.info("tokenizer: %s, %d pieces", config.tokenizer.model, tokenizers.vocab_sizes[1])
        return tokenizers
    if config.tokenizer.joint:
        return TokenizerPair.joint(_learned(config, files, (0, 1), "tokenizer"))
    return TokenizerPair(
        _learned(config, files, (0,), "source tokenizer"),
        _learned(config, files, (1,), "target tokenizer"),
    )


def _learned(
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
        logger.info("%s: language tags, a piece each: %s", name, listed(known))
    logger.info("%s: learned %d pieces", name, tokenizer.vocab_size)
    return tokenizer


def _named_tokenizers(config: RunConfig) -> TokenizerPair:
    """A `.model` file, or what a model directory has."""
    path = Path(config.tokenizer.model)
    tokenizers = load_named_tokenizers(path)
    if config.model.tied_embeddings & 1 and not tokenizers.shares_vocabulary:
        raise ConfigError(
            f"{path}: has another vocabulary for each side, which the model would share",
            hint="set `model.tied_embeddings` to 2 or 0",
        )
    return tokenizers


def _lines(
    files: Sequence[CorpusFile], *, sides: tuple[int, ...], bad_utf8: str, counts: TagCounts
) -> Iterator[str]:
    """The lines of some sides of all files; the tags of source lines are counted."""
    has_text = False
    with shown_progress("reading text to learn a tokenizer", logger) as show:
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


def _tell_losses(
    store: CorpusStore, tokenizers: TokenizerPair, files: Sequence[CorpusFile], origin: Origin
) -> None:
    """Log what of the training text the tokenizers cannot spell, or write in another form."""
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
            told = f"does not know {trip.unknown} of {trip.pieces} {side} pieces "
            told += f"({_percent(trip.unknown, trip.pieces)})"
            if trip.is_explained(tokenizer):
                told += f" and changes {many}"
            told += f", first {_place(first, index, files)}: `{first.text}`"
            is_grave = trip.unknown > MAX_UNKNOWN * trip.pieces
            _log_loss(told, hint_for_unknown(origin), is_grave=is_grave)
        first = trip.first_changed
        if first is not None and not trip.is_explained(tokenizer):
            told = f"changes {many}, first {_place(first, index, files)}: "
            told += f"`{first.text}` becomes `{first.becomes}`"
            is_grave = trip.changed > MAX_CHANGED * trip.lines
            _log_loss(told, hint_for_changed(origin, tokenizer), is_grave=is_grave)


def _log_loss(told: str, advice: str, *, is_grave: bool) -> None:
    level = logging.WARNING if is_grave else logging.INFO
    logger.log(level, "training text: the tokenizer %s; %s", told, advice)


def _percent(count: int, whole: int) -> str:
    return f"{100 * count / max(1, whole):.1f} %"


def _place(place: LinePosition, side: int, files: Sequence[CorpusFile]) -> str:
    names = files[place.file].names if place.file < len(files) else ("?",)
    return f"{names[min(side, len(names) - 1)]}:{place.line}"


def _dropped(store: CorpusStore) -> str:
    return "".join(
        f", {count} dropped: {reason}" for reason, count in sorted(store.dropped.items()) if count
    )
