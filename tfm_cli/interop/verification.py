"""Comparison of a model's results in tfm and in another program, on the lines of a probe."""

# B segments, S source tokens, T target tokens with </s>, V vocabulary

import codecs
import dataclasses
import logging
import math
import random
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from tfm_cli.config.settings import SearchConfig
from tfm_cli.console import counted
from tfm_cli.corpus.batch import pad_source
from tfm_cli.corpus.sources import sample_path
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.interface import (
    DecodingOptions,
    Hypothesis,
    TargetVocabulary,
    refuse_non_finite,
)
from tfm_cli.errors import DataError, ModelError, ResourceError
from tfm_cli.interop.ctranslate2 import num_positions
from tfm_cli.interop.marian.files import NpzFile
from tfm_cli.interop.marian.reading import MODEL
from tfm_cli.interop.runtimes import (
    CTranslate2Runtime,
    HuggingFaceRuntime,
    Ids,
    Runtime,
    is_installed,
    padded_batch,
)
from tfm_cli.interop.source_files import first_line
from tfm_cli.interop.tensors import ImportedModel
from tfm_cli.model_directory.weights import TrainedModel, build_transformer
from tfm_cli.text.reader import held_in_memory, open_lines
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # between logits, and between scores of translations that count as equal
BEAM_SIZE = 4
_MAX_QUANTIZATION_LOSS = 1.0  # mean difference of log-probabilities; far less than at random
_BATCH = 16
_MAX_TOKENS = 100  # of a source or a translation: enough to show a difference
_MAX_RANDOM_TARGET = 16  # tokens
_MARIAN_TAG = re.compile(r">>.+<<")  # the language tags of MarianTokenizer
_MAX_CONVERTED_TOKENS = 200  # CTranslate2's conversion of an `.npz` has positions for 2,048

NUM_PROBE_LINES = 24
_SAMPLES = ("test.en", "test.fr")
# Above these limits, a tokenizer is considered unsuitable for a language.
_MAX_UNKNOWN = 0.02  # of the tokens
_MAX_TOKENS_PER_CHARACTER = 0.6
_MAX_RANDOM_LINE = 20  # tokens
_SEED = 1


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a comparison in fp32, or the reason why there was none."""

    against: str = ""  # the other program
    lines: int = 0
    difference: float = 0.0  # the largest between two logits
    near_ties: int = 0  # translations that differ but score the same
    unfinished: int = 0  # lines whose beams reach the length limit, where programs differ by design
    # Lines whose segmentation into tokens was not compared, by reason.
    left_out: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""  # why the other program did not run the model
    remark: str = ""

    @property
    def is_empty(self) -> bool:
        """Return True if the segmentation into tokens was compared on no line."""
        return sum(self.left_out.values()) >= self.lines

    def log(self) -> None:
        """Log the result, as a warning if it proves nothing."""
        logger.log(logging.WARNING if self.is_empty else logging.INFO, "%s", self)

    def __str__(self) -> str:
        if self.reason:
            return f"not verified: {self.reason}"
        if not self.lines:
            return f"not verified with {self.against}: the probe has no line with a token"
        text = (
            f"{'not ' if self.is_empty else ''}verified with {self.against} on "
            f"{counted(self.lines, 'line')}: "
        )
        if self.is_empty:
            text += "the segmentation of no line was compared; "
        text += f"logits at most {self.difference:.1e} apart, same greedy"
        compared = self.lines - self.unfinished
        if not self.unfinished:
            text += f" and beam-{BEAM_SIZE} tokens"
        elif compared:
            text += f" tokens, same beam-{BEAM_SIZE} tokens on the {compared} whose beams end"
        else:
            text += f" tokens; no beam of {BEAM_SIZE} ends, so none was compared"
        text += f" (except for {counted(self.near_ties, 'near tie')})" if self.near_ties else ""
        for reason, count in self.left_out.items():
            text += f"; the segmentation of {counted(count, 'line')} was not compared: {reason}"
        return text + (f" ({self.remark})" if self.remark else "")


@dataclass(frozen=True, slots=True)
class QuantizationLoss:
    """The effect of quantized weights."""

    difference: float  # mean difference of the log-probability of a given token
    unchanged: int  # lines that keep their translation
    lines: int

    def __str__(self) -> str:
        if not self.lines:
            return "not compared: the probe has no line with a token"
        return (
            f"log-probabilities differ by {self.difference:.2g} on average, "
            f"{self.unchanged} of {counted(self.lines, 'line')} keep their translation"
        )


def verify_hugging_face(model: TrainedModel, directory: Path, lines: Sequence[str]) -> Verification:
    """Compare a model with a Marian directory that `transformers` loads.

    Args:
        model: on the CPU; its special ids are used instead of those in the directory.
        directory: `config.json`, `model.safetensors` and the files of MarianTokenizer.
        lines: text to compare on; blank lines are left out.

    Raises:
        ModelError: they differ; the message has the line, the token and the values.
    """
    if not is_installed("transformers"):
        return Verification(reason="transformers is not installed")
    try:
        runtime = HuggingFaceRuntime(directory, model.tokenizers)
    except ImportError as error:  # such as an incompatible version of one of its dependencies
        return Verification(reason=f"transformers cannot be used: {first_line(error)}")
    return compare(model, runtime, lines)


def verify_ctranslate2(model: TrainedModel, directory: Path, lines: Sequence[str]) -> Verification:
    """Compare a model with its export in fp32 that CTranslate2 loads.

    Arguments and errors are those of `verify_hugging_face`.
    """
    if not is_installed("ctranslate2"):
        return Verification(reason="ctranslate2 is not installed")
    runtime = CTranslate2Runtime(directory, model.tokenizers, max_tokens=num_positions(model) - 2)
    return compare(model, runtime, lines)


@torch.inference_mode()
def verify_quantized_ctranslate2(
    model: TrainedModel, directory: Path, lines: Sequence[str]
) -> QuantizationLoss:
    """Compare a model with its quantized export that CTranslate2 loads.

    Raises:
        ModelError: they differ by more than quantization can explain.
    """
    target = model.tokenizers.target
    runtime = CTranslate2Runtime(
        directory, model.tokenizers, max_tokens=num_positions(model) - 2, compute_type="default"
    )
    ours = TfmRuntime(model, bans_before_softmax=runtime.bans_before_softmax)
    sources = _sources(model.tokenizers.source, runtime, lines)
    limit = _limit(sources, runtime)
    rng = random.Random(_SEED)
    differences: list[Tensor] = []
    unchanged = 0
    for start in range(0, len(sources), _BATCH):
        batch = sources[start : start + _BATCH]
        targets = [_random_target(target, rng)[: runtime.max_tokens] for _ in batch]
        differences += runtime.differences(batch, targets, ours.logits(batch, targets))
        expected = ours.search(batch, beam_size=BEAM_SIZE, limit=limit)
        actual = runtime.search(batch, beam_size=BEAM_SIZE, limit=limit)
        unchanged += sum(
            beam[0].ids == ids[:limit] for beam, ids in zip(expected, actual, strict=True)
        )
    difference = float(torch.cat(differences).mean()) if differences else 0.0
    if not difference <= _MAX_QUANTIZATION_LOSS:
        reason = (
            f"log-probabilities differ by {difference:.2g} on average, "
            f"expected at most {_MAX_QUANTIZATION_LOSS:g}"
        )
        raise _mismatch(runtime, "with quantized weights", reason)
    return QuantizationLoss(difference, unchanged, len(sources))


@torch.inference_mode()
def compare(model: TrainedModel, runtime: Runtime, lines: Sequence[str]) -> Verification:
    """Compare the source ids of lines, the logits for random targets, and two searches.

    Raises:
        ModelError: they differ; the message has the line, the token and the values.
    """
    lines = [line for line in lines if line.strip()]
    source, target = model.tokenizers.source, model.tokenizers.target
    ours = TfmRuntime(model, bans_before_softmax=runtime.bans_before_softmax)
    left_out = _compare_source_ids(source, runtime, lines)
    sources = _sources(source, runtime, lines)
    limit = _limit(sources, runtime)
    rng = random.Random(_SEED)
    difference, near_ties, unfinished = 0.0, 0, 0
    for start in range(0, len(sources), _BATCH):
        batch = sources[start : start + _BATCH]
        targets = [_random_target(target, rng)[: runtime.max_tokens] for _ in batch]
        differences = runtime.differences(batch, targets, ours.logits(batch, targets))
        for row, of_line in enumerate(differences):
            pieces = [target.pieces[index] for index in (*targets[row], target.eos_id)]
            _refuse_if_apart(runtime, start + row + 1, pieces, of_line)
            difference = max(difference, float(of_line.max()))
        for beam_size in (1, BEAM_SIZE):
            expected = ours.search(batch, beam_size=beam_size, limit=limit)
            actual = runtime.search(batch, beam_size=beam_size, limit=limit)
            for row, (beam, ids) in enumerate(zip(expected, actual, strict=True)):
                # Programs differ in how they end a beam that reaches the limit.
                if beam_size > 1 and any(len(hypothesis.ids) >= limit for hypothesis in beam):
                    unfinished += 1
                elif beam[0].ids != ids[:limit]:
                    gap = _gap(ours, batch[row], beam[0], ids[:limit], beam_size=beam_size)
                    if abs(gap) >= TOLERANCE:
                        position = f"probe line {start + row + 1}, beam {beam_size}"
                        raise _other_tokens(runtime, target, position, beam[0].ids, ids, gap)
                    near_ties += 1
    return Verification(
        runtime.name, len(sources), difference, near_ties, unfinished, dict(left_out)
    )


class TfmRuntime:
    """A model in tfm on the CPU, with the search rules that other programs share.

    Args:
        model: in evaluation mode.
        bans_before_softmax: see `Runtime`.
    """

    def __init__(self, model: TrainedModel, *, bans_before_softmax: bool) -> None:
        self._transformer = model.transformer
        self._pair = model.tokenizers
        self._banned = torch.tensor(model.tokenizers.target.banned_ids, dtype=torch.long)
        self._bans_before_softmax = bans_before_softmax

    @property
    def eos_id(self) -> int:
        """Return the id of </s> on the target side."""
        return self._pair.target.eos_id

    def logits(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[Tensor]:
        """Return the logits of each next token of given targets, (T, V) for each segment.

        Raises:
            NonFiniteScoresError: they are not finite.
        """
        batch = padded_batch(self._pair, sources, targets)
        logits = self._transformer(batch.source, batch.source_keep, batch.target_in)  # (B, T, V)
        refuse_non_finite(logits)
        return [logits[row, : len(target) + 1] for row, target in enumerate(targets)]

    def search(
        self, sources: Sequence[Ids], *, beam_size: int, limit: int
    ) -> list[list[Hypothesis]]:
        """Return the translations of each segment, best first; see `Runtime.search`."""
        source, keep = pad_source([list(ids) for ids in sources], self._pair.source.eos_id)
        target = self._pair.target
        return beam_search(
            self._transformer,
            source,
            keep,
            limits=[limit] * len(sources),
            vocabulary=TargetVocabulary(target.start_id, target.eos_id, target.banned_ids),
            options=DecodingOptions(
                settings=SearchConfig(
                    beam_size=beam_size, early_stopping=True, renormalize=self._bans_before_softmax
                )
            ),
        )

    def score(self, source: Ids, target: Ids) -> float:
        """Return the score of a translation: the mean log-probability of its tokens with </s>."""
        logits = self.logits([source], [target])[0]  # (T, V)
        if self._bans_before_softmax:
            logits = logits.index_fill(1, self._banned, -math.inf)
        tokens = torch.tensor([*target, self.eos_id])  # (T,)
        return float(logits.log_softmax(dim=1).gather(1, tokens[:, None]).mean())


def _gap(model: TfmRuntime, source: Ids, ours: Hypothesis, theirs: Ids, *, beam_size: int) -> float:
    """Return the margin by which tfm's model prefers its own translation, in logits or scores."""
    if beam_size > 1:
        return ours.score - model.score(source, theirs)
    # After the first token that differs, the two greedy searches have different prefixes.
    position = _first_difference(ours.ids, theirs)
    logits = model.logits([source], [theirs])[0][position]  # (V,)
    first, second = (*ours.ids, model.eos_id)[position], (*theirs, model.eos_id)[position]
    return float(logits[first] - logits[second])


def _refuse_if_apart(
    runtime: Runtime, line: int, pieces: Sequence[str], differences: Tensor
) -> None:
    # `argmax` selects a NaN if there is one, and a NaN fails the comparison.
    worst = int(differences.argmax())
    if not float(differences[worst]) <= TOLERANCE:
        position = f"probe line {line}, token {worst + 1} (`{pieces[worst]}`)"
        reason = f"logits differ by {float(differences[worst]):.2g}, expected at most {TOLERANCE:g}"
        raise _mismatch(runtime, position, reason)


def _compare_source_ids(
    tokenizer: Tokenizer, runtime: Runtime, lines: Sequence[str]
) -> Counter[str]:
    """Compare the segmentation of lines, except of those that differ by design.

    Returns:
        The number of lines that were left out, by reason.
    """
    # Other programs convert the spelling of a special token in the text to that token, and treat
    # anything that looks like a language tag as one, even if the model has no such tag.
    ids = {tokenizer.eos_id, tokenizer.unk_id, tokenizer.start_id, *tokenizer.banned_ids}
    special = [tokenizer.pieces[index] for index in ids]
    left_out: Counter[str] = Counter()
    plain = []
    for number, line in enumerate(lines, 1):
        tag = _MARIAN_TAG.match(line)
        if any(piece in line for piece in special):
            left_out["special tokens in the text are not read as text there"] += 1
        elif (tag[0] if tag else "") != tokenizer.language_tag(line):
            left_out["only the other program reads a language tag at the beginning"] += 1
        else:
            plain.append((number, line))
    texts = [line for _, line in plain]
    actual = runtime.encode(texts) if texts else []
    if actual is None:
        return Counter()
    for (number, _), theirs, ours in zip(plain, actual, tokenizer.encode(texts), strict=True):
        if theirs != tuple(ours):
            position = f"probe line {number}, token {_first_difference(ours, theirs) + 1}"
            raise _mismatch(runtime, position, f"expected ids {ours}, got {list(theirs)}")
    return left_out


def _sources(tokenizer: Tokenizer, runtime: Runtime, lines: Sequence[str]) -> list[Ids]:
    longest = min(_MAX_TOKENS, runtime.max_tokens)
    return [tuple(ids[:longest]) for ids in tokenizer.encode(lines) if ids]


def _limit(sources: Sequence[Ids], runtime: Runtime) -> int:
    longest = max(map(len, sources), default=0)
    return min(2 * longest + 10, _MAX_TOKENS, runtime.max_tokens)


def _random_target(tokenizer: Tokenizer, rng: random.Random) -> Ids:
    """Return random tokens of the whole vocabulary, without </s> and banned tokens."""
    never_drawn = {tokenizer.eos_id, *tokenizer.banned_ids}
    usable = [index for index in range(tokenizer.vocab_size) if index not in never_drawn]
    return tuple(rng.choices(usable, k=rng.randint(0, _MAX_RANDOM_TARGET)))


def _other_tokens(
    runtime: Runtime, target: Tokenizer, position: str, ours: Ids, theirs: Ids, gap: float
) -> ModelError:
    index = _first_difference(ours, theirs)
    expected, actual = (target.pieces[(*ids, target.eos_id)[index]] for ids in (ours, theirs))
    reason = f"expected `{expected}`, got `{actual}`, which scores {gap:.2g} less"
    return _mismatch(runtime, f"{position}, token {index + 1}", reason)


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    same = (a == b for a, b in zip(ours, theirs, strict=False))
    return next(
        (index for index, equal in enumerate(same) if not equal), min(len(ours), len(theirs))
    )


def _mismatch(runtime: Runtime, position: str, reason: str) -> ModelError:
    return ModelError(
        f"{runtime.name} does not compute what tfm computes: {position}: {reason}",
        hint="please report it together with the model's `config.json`; nothing was written",
    )


# The probe: the text on which models are compared


def probe_lines(model: TrainedModel, probe_file: Path | None) -> list[str]:
    """Return lines to compare a model on, none of them blank.

    Without a file, they are sentences of the sample corpus if the tokenizer suits one of its
    languages, otherwise random tokens of the source vocabulary. If the model has language tags, a
    line without one gets one.

    Args:
        model: the model to compare.
        probe_file: text in the source language, plain or compressed.

    Raises:
        DataError: the file cannot be read, or all its lines are blank.
    """
    tokenizer = model.tokenizers.source
    if probe_file is None:
        lines = _sample(tokenizer) or _random_lines(tokenizer, random.Random(_SEED))
    else:
        with open_lines(probe_file) as reader:
            lines = held_in_memory((line for line in reader if line.strip()), reader.name)
        if not lines:
            raise DataError(f"{probe_file}: has no line to verify the model with")
    tags = tokenizer.language_tags
    if not tags:
        return lines
    return [
        line if line.startswith(tags) else f"{tags[index % len(tags)]} {line}"
        for index, line in enumerate(lines)
    ]


def _sample(tokenizer: Tokenizer) -> list[str]:
    """Return sentences in the language that the tokenizer suits best; none if it suits none."""
    best: tuple[float, list[str]] = (_MAX_TOKENS_PER_CHARACTER, [])
    for name in _SAMPLES:
        try:
            with open_lines(sample_path(name)) as reader:
                lines = list(islice((line for line in reader if line.strip()), NUM_PROBE_LINES))
        except ResourceError:  # the sample corpus is not installed
            continue
        ids = [index for row in tokenizer.encode(lines) for index in row]
        density = len(ids) / sum(map(len, lines))
        if ids.count(tokenizer.unk_id) <= _MAX_UNKNOWN * len(ids) and density < best[0]:
            best = density, lines
    return best[1]


def _random_lines(tokenizer: Tokenizer, rng: random.Random) -> list[str]:
    special = {tokenizer.eos_id, tokenizer.unk_id, tokenizer.start_id, *tokenizer.banned_ids}
    special |= set(tokenizer.piece_ids(tokenizer.language_tags))
    # A joint vocabulary has pieces that the SentencePiece model of the source never produces.
    own = {piece for piece, _ in tokenizer.scored_pieces}
    usable = [i for i, piece in enumerate(tokenizer.pieces) if i not in special and piece in own]
    rows = [rng.choices(usable, k=rng.randint(1, _MAX_RANDOM_LINE)) for _ in range(NUM_PROBE_LINES)]
    return [line for line in tokenizer.decode(rows) if line.strip()] or ["?"]


# Imported models, compared with the originals that other programs run


def verify_import(
    model: TrainedModel, imported: ImportedModel, directory: Path, lines: Sequence[str]
) -> Verification:
    """Compare a model with its original.

    A Hugging Face model is run by `transformers`. Only Marian itself runs an `.npz`, which is
    therefore compared with its conversion by CTranslate2. That conversion always has positions in
    halves, so our weights are compared under those.

    Args:
        model: the imported model, read back.
        imported: the imported model before it was written.
        directory: the original.
        lines: text to compare on; blank lines are left out.

    Raises:
        ModelError: the two models differ.
    """
    with tempfile.TemporaryDirectory(prefix="tfm-") as temporary:
        if imported.vocabulary_files:
            return _verify_npz(model, imported, directory, Path(temporary), lines)
        return verify_hugging_face(model, _without_bom(directory, Path(temporary)), lines)


def _verify_npz(
    model: TrainedModel,
    imported: ImportedModel,
    directory: Path,
    temporary: Path,
    lines: Sequence[str],
) -> Verification:
    if not is_installed("ctranslate2"):
        return Verification(reason="ctranslate2 is not installed")
    import yaml
    from ctranslate2.converters import MarianConverter

    converted_model = _as_converted(model)
    try:
        weights = _readable_weights(directory / imported.weights_file, temporary)
        home = _without_bom(directory, temporary, imported.vocabulary_files)
        vocabularies = [str(home / name) for name in dict.fromkeys(imported.vocabulary_files)]
        converter = MarianConverter(str(weights), vocabularies)
        converted = Path(converter.convert(f"{temporary}/model"))
    except (KeyError, ValueError, RuntimeError, NotImplementedError, yaml.YAMLError) as error:
        return Verification(reason=f"CTranslate2 cannot read it: {error}")
    runtime = CTranslate2Runtime(
        converted, converted_model.tokenizers, max_tokens=_MAX_CONVERTED_TOKENS
    )
    result = compare(converted_model, runtime, lines)
    has_own_positions = model.config.model.positions == "sinusoidal_marian"
    return dataclasses.replace(
        result, remark="with CTranslate2's positions" if has_own_positions else ""
    )


def _readable_weights(path: Path, temporary: Path) -> Path:
    """Return the path of an archive, or of a copy that CTranslate2 can read.

    CTranslate2 strips only one of the zeros that pad the options, of which newer versions of
    Marian write many, and it assumes that numbers have the byte order of this machine.
    """
    with NpzFile(path) as stored:
        content = stored.content(MODEL)
        plain = content.rstrip(b"\0") + b"\0"
        if plain == content and stored.is_native:
            return path
        stored.copy_with(temporary / "model.npz", MODEL, plain)
    return temporary / "model.npz"


def _without_bom(directory: Path, temporary: Path, names: Collection[str] = ()) -> Path:
    """Return a directory whose text files lack byte order marks, which others read as text.

    It is the directory itself, or a new one with links to its files and copies without the mark.

    Args:
        directory: only its regular files are considered.
        temporary: parent of a new directory.
        names: of the text files; by default all JSON files.
    """
    files = [path for path in directory.iterdir() if path.is_file()]
    marked = []
    for path in files:
        if path.name in names or (not names and path.suffix == ".json"):
            with path.open("rb") as stream:
                if stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                    marked.append(path)
    if not marked:
        return directory
    home = temporary / "text"
    home.mkdir()
    for path in files:
        if path in marked:
            (home / path.name).write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        else:
            (home / path.name).symlink_to(path.resolve())
    return home


def _as_converted(model: TrainedModel) -> TrainedModel:
    """Return the model as CTranslate2 converts it: positions in halves, and <unk> not banned."""
    shape = dataclasses.replace(model.config.model, positions="sinusoidal_halves")
    converted = build_transformer(shape, model.tokenizers.vocab_sizes)
    converted.load_state_dict(model.transformer.state_dict())
    sides = []
    for side in (model.tokenizers.source, model.tokenizers.target):
        assert side.vocabulary is not None, "every Marian model has one"
        vocabulary = dataclasses.replace(side.vocabulary, banned=(side.vocabulary.start,))
        sides.append(Tokenizer(side.model_bytes, vocabulary))
    config = dataclasses.replace(model.config, model=shape)
    return TrainedModel(config, TokenizerPair(sides[0], sides[1]), converted.eval())
