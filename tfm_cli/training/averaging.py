"""`tfm average`: a model with the mean of the weights of several checkpoints.

Source: Vaswani et al. 2017, section 6.1, where the last 5 or 20 checkpoints are averaged.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tfm_cli.config.settings import RunConfig
from tfm_cli.console import counted
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.device import resolve_device
from tfm_cli.errors import ConfigError, DataError, ModelError, ResourceError
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_directory, check_writable
from tfm_cli.files.layout import (
    CARD_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    SHORTLIST_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
)
from tfm_cli.files.ownership import (
    holds_model,
    holds_only,
    inspecting,
    is_card,
    is_empty_directory,
    refuse_replacing_inputs,
)
from tfm_cli.files.safetensors_file import SafetensorsFile
from tfm_cli.model_directory.card import read_card
from tfm_cli.model_directory.config_file import (
    SavedConfig,
    load_config,
    load_tokenizers,
    save_config,
)
from tfm_cli.model_directory.weight_shapes import (
    listed,
    non_finite_weights_error,
    shape_differences,
    weight_shapes,
)
from tfm_cli.model_directory.weights import (
    WeightsFacts,
    build_transformer,
    non_finite_tensors,
    save_weights,
)
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.training import checkpoint
from tfm_cli.training.artifacts import CardFacts, model_card
from tfm_cli.training.data import Pairs, pairs_sha256, read_validation, with_sample_corpus
from tfm_cli.training.progress import score_text
from tfm_cli.training.run import make_validation
from tfm_cli.training.state import TrainState
from tfm_cli.training.validation import Validation

logger = logging.getLogger(__name__)

# The files of a model that an average may replace.
_MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, SHORTLIST_FILE, CARD_FILE, *TOKENIZER_FILES)


@dataclass(frozen=True, slots=True)
class Selected:
    """A checkpoint to average, of which only the counters and hashes were read."""

    path: Path
    state: TrainState
    text_sha256: Mapping[str, str]
    sha256: Mapping[str, str]  # of each file, by name


def average(
    run: Path, output: Path, *, last: int = 0, best: int = 0, overwrite: bool = False
) -> None:
    """Write a model with the mean of the weights of several checkpoints of a run.

    The weights are those that were trained, not their moving average. The model is scored on the
    validation text of the run, unless there is none or it is not there any more.

    Args:
        run: the directory of the run.
        output: the model directory to create.
        last: average this many newest checkpoints; 0 for `best`.
        best: average this many checkpoints with the best validation scores.
        overwrite: replace a model in `output`.

    Raises:
        ConfigError: the run has fewer checkpoints, or `output` must not be replaced.
        ModelError: the run or a checkpoint is damaged.
        ResourceError: `output` cannot be written.
    """
    check_output(output, overwrite=overwrite)
    refuse_replacing_inputs(output, [run / CONFIG_FILE])
    saved = load_config(run)
    tokenizers = load_tokenizers(run, saved)
    selected = select(run, last=last, best=best, metrics=saved.settings.validation.metrics)
    weights = mean_weights(selected, saved)
    newest = max(selected, key=lambda each: each.state.update)
    text = _validation_text(saved.settings, newest.text_sha256, tokenizers)
    with atomic_directory(output, may_replace=_may_replace) as temporary:
        validation = _validate(saved, tokenizers, weights, text) if text else None
        facts = WeightsFacts(newest.state.update, validation.values if validation else {})
        save_config(temporary, saved.settings, tokenizers)
        save_weights(temporary, weights, tokenizers, saved.settings.model, facts)
        card = _card(run, saved, selected, newest.state, validation)
        durable.write_file(temporary / CARD_FILE, card.encode("utf-8", "backslashreplace"))
    logger.info(
        "wrote %s: the mean of %s, after %s",
        output, counted(len(selected), "checkpoint"), _updates_text(selected),
    )  # fmt: skip
    if validation:
        logger.info("%s", "  ".join(score_text(*each) for each in validation.values.items()))
        for score in validation.scores:
            logger.info("%s signature: %s", score.name, score.signature)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise an error for a directory that must not be replaced, before any long work begins.

    Raises:
        ConfigError: it holds a model and `overwrite` is not set, or it holds something else.
        ResourceError: it cannot be written.
    """
    check_writable(output, folder=True)
    if not os.path.lexists(output):
        return
    if not output.exists():
        raise ConfigError(
            f"{output}: is a symbolic link to a directory that does not exist",
            hint="create that directory, or name another `--output`",
        )
    with inspecting(output):
        if is_empty_directory(output):
            return
        is_model = _may_replace(output)
    if not is_model:
        raise ConfigError(
            f"{output}: is not empty and holds more than a model", hint="name another `--output`"
        )
    if not overwrite:
        hint = "use `--overwrite` to replace it, or name another `--output`"
        raise ConfigError(f"{output}: holds a model", hint=hint)


def _may_replace(directory: Path) -> bool:
    """Return True for an empty directory, or one with a model made by tfm and nothing else."""
    return is_empty_directory(directory) or (
        holds_model(directory)
        and holds_only(directory, _MODEL_FILES)
        and is_card(directory / CARD_FILE)
    )


def select(run: Path, *, last: int, best: int, metrics: Sequence[str]) -> list[Selected]:
    """Return the checkpoints of a run to average, oldest first.

    Raises:
        ConfigError: it has too few.
        ModelError: one of them is damaged.
    """
    paths = checkpoint.checkpoint_paths(run / CHECKPOINTS)
    count, kind, setting = last, "checkpoint", "keep_checkpoints"
    if best:
        paths = checkpoint.best_checkpoints(paths, metrics)
        count, kind, setting = best, "checkpoint with a validation score", "keep_best"
    if len(paths) < count:
        plural = kind.replace("checkpoint", "checkpoints", 1)
        at_least = max(count, 2) if setting == "keep_checkpoints" else count
        hint = f"train with `--set training.{setting}={at_least}`"
        raise ConfigError(
            f"{run}: has {counted(len(paths), kind, plural)}, expected at least {count}",
            hint=f"{hint}, or average fewer" if paths else hint,
        )
    chosen = paths[:best] if best else paths[-last:]
    return [
        Selected(path, *checkpoint.read_counters(path))
        for path in sorted(chosen, key=checkpoint.update_of)
    ]


def mean_weights(selected: Sequence[Selected], saved: SavedConfig) -> dict[str, Tensor]:
    """Return the mean of the weights of several checkpoints, by name, in fp32.

    A tensor of each is read at a time and summed in double precision, so that the memory does not
    depend on their number.

    Raises:
        ModelError: a checkpoint is damaged, or is not of this model.
    """
    shapes = weight_shapes(saved.settings.model, saved.vocab_sizes)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_opened(each, shapes)) for each in selected]
        mean = {}
        for name, shape in shapes.items():
            info = files[0].tensors[name]
            buffer = bytearray(info.end - info.begin)
            total = torch.zeros(shape, dtype=torch.float64)
            for each, file in zip(selected, files, strict=True):
                with _damage_reported(each.path / WEIGHTS_FILE):
                    file.read_tensor(name, memoryview(buffer))
                total += torch.frombuffer(buffer, dtype=torch.float32).view(shape)
            mean[name] = (total / len(files)).float()
        for each, file in zip(selected, files, strict=True):
            with _damage_reported(each.path / WEIGHTS_FILE):
                file.check_unchanged()
    if bad := non_finite_tensors(mean):
        raise non_finite_weights_error(selected[-1].path / WEIGHTS_FILE, bad)
    return mean


def _opened(selected: Selected, shapes: Mapping[str, tuple[int, ...]]) -> SafetensorsFile:
    """Return the open weights file of a checkpoint, whose hash and shapes were checked."""
    path = selected.path / WEIGHTS_FILE
    with _damage_reported(path), contextlib.ExitStack() as stack:
        file = stack.enter_context(SafetensorsFile(path))
        wrong = [name for name, info in file.tensors.items() if info.dtype not in checkpoint.TYPES]
        if wrong:
            raise ModelError(f"{path}: {wrong[0]} has type {file.tensors[wrong[0]].dtype}")
        problems = shape_differences(
            {name: info.shape for name, info in file.tensors.items()}, shapes
        )
        if problems:
            title = f"{path}: its tensors are not those of this model"
            raise ModelError(f"{title}\n  {listed(problems)}")
        if file.sha256_of_file() != selected.sha256[WEIGHTS_FILE]:
            raise ModelError(f"{path}: is not what was saved: its SHA-256 differs")
        stack.pop_all()
    return file


@contextlib.contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Convert an error of reading a file to a ModelError, or to a ResourceError if it is sound."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise ResourceError(
                f"{path}: cannot be opened: {error.strerror}",
                hint="average fewer checkpoints, or raise the limit of `ulimit -n`",
            ) from error
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ModelError(f"{path}: is damaged or not a checkpoint: {reason}") from error


def _validation_text(
    config: RunConfig, text_sha256: Mapping[str, str], tokenizers: TokenizerPair
) -> tuple[Pairs, CorpusStore] | None:
    """Return the validation text of a run, as lines and encoded; without it log so, return None."""
    data = with_sample_corpus(config.data)
    try:
        pairs = read_validation(data)
    except DataError as error:
        logger.warning("not scored on the validation text: %s", error)
        return None
    if not pairs:
        logger.info("not scored: the run has no validation text")
        return None
    if pairs_sha256(pairs) != text_sha256.get("validation text"):
        logger.warning("not scored: the validation text is not the one of the run")
        return None
    name = ", ".join(data.valid_source)
    return pairs, CorpusStore.build(pairs, tokenizers, max_length=data.max_length, name=name)


def _validate(
    saved: SavedConfig,
    tokenizers: TokenizerPair,
    weights: Mapping[str, Tensor],
    text: tuple[Pairs, CorpusStore],
) -> Validation:
    """Return the validation of weights, as `tfm train` makes it."""
    device = torch.device(str(resolve_device("auto")))
    with torch.device("meta"):  # no initial weights are drawn
        model = build_transformer(saved.settings.model, saved.vocab_sizes)
    model.load_state_dict(weights, assign=True)
    pairs, store = text
    validate = make_validation(saved.settings, tokenizers, store, pairs, model.to(device), device)
    return validate()


def _card(
    run: Path,
    saved: SavedConfig,
    selected: Sequence[Selected],
    state: TrainState,
    validation: Validation | None,
) -> str:
    """Return the model card: that of the run, with these weights and their scores."""
    of_run = read_card(run / CARD_FILE)
    rows = of_run.rows if of_run else {}
    shapes = weight_shapes(saved.settings.model, saved.vocab_sizes)
    facts = CardFacts(
        precision=rows.get("precision", "not known"),
        num_parameters=sum(torch.Size(shape).numel() for shape in shapes.values()),
        vocab_sizes=saved.vocab_sizes,
        pairs=rows.get("pairs", "not known"),
        weights=f"mean of {counted(len(selected), 'checkpoint')}, after {_updates_text(selected)}",
        values=validation.values if validation else {},
        scores=validation.scores if validation else (),
        changes=[rows["changed settings"]] if "changed settings" in rows else [],
    )
    return model_card(saved.settings, state, facts)


def _updates_text(selected: Sequence[Selected]) -> str:
    updates = [str(each.state.update) for each in selected]
    return f"update{'s' if len(updates) > 1 else ''} {', '.join(updates)}"
