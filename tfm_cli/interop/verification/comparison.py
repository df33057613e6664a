"""Whether a model computes elsewhere what it computes here, shown on sentences."""

# B segments, S source pieces, T target pieces with </s>, V vocabulary

import logging
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.errors import ModelError
from tfm_cli.interop.ctranslate2 import num_positions
from tfm_cli.interop.verification import ctranslate2, hugging_face
from tfm_cli.interop.verification.our_model import OurSide
from tfm_cli.interop.verification.runtime import Ids, Runtime
from tfm_cli.model_directory.weights import TrainedModel
from tfm_cli.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # between logits, and between scores of translations that are as good as equal
BEAM_SIZE = 4
_COARSEST = 1.0  # mean difference of log-probabilities; a translation at random is far beyond
_BATCH = 16
_MOST_PIECES = 100  # of a source or a translation: enough to show a difference
_LONGEST_TARGET = 16  # of those that are given
_MARIAN_TAG = re.compile(r">>.+<<")  # what MarianTokenizer takes for a language tag


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared, and how close it was."""

    against: str  # the other program
    lines: int
    difference: float  # the largest between two logits
    near_ties: int  # translations that differ but are equally good
    unfinished: int  # lines whose beams met the longest length, where programs differ by design
    # Lines whose cutting into pieces was not compared, by the reason.
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to compare, or no line whose cutting could be."""
        return sum(self.left_out.values()) >= self.lines

    def __str__(self) -> str:
        if not self.lines:
            return f"not verified with {self.against}: the probe has no line with a piece"
        told = (
            f"{'not ' if self.is_empty else ''}verified with {self.against} on "
            f"{_many(self.lines, 'line')}: "
        )
        if self.is_empty:
            told += "no line's cutting into pieces was compared; "
        told += f"logits at most {self.difference:.1e} apart, same greedy"
        compared = self.lines - self.unfinished
        if not self.unfinished:
            told += f" and beam-{BEAM_SIZE} pieces"
        elif compared:
            told += f" pieces, same beam-{BEAM_SIZE} pieces on the {compared} whose beams end"
        else:
            told += f" pieces; no beam of {BEAM_SIZE} ends, so none was compared"
        told += f" (but for {_many(self.near_ties, 'near tie')})" if self.near_ties else ""
        for reason, count in self.left_out.items():
            told += f"; the cutting of {_many(count, 'line')} was left out: {reason}"
        return told


@dataclass(frozen=True, slots=True)
class Coarseness:
    """What coarser weights changed."""

    difference: float  # mean difference of a given piece's log-probability
    kept: int  # lines that keep their translation
    lines: int

    def __str__(self) -> str:
        if not self.lines:
            return "not compared: the probe has no line with a piece"
        return (
            f"log-probabilities {self.difference:.2g} apart in the mean, "
            f"{self.kept} of {_many(self.lines, 'line')} keep their translation"
        )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def verify_hugging_face(
    model: TrainedModel, directory: Path, lines: Sequence[str]
) -> Verification | None:
    """Compare a model with what `transformers` makes of a Marian directory.

    Special ids are the model's, so that the directory may be anybody's.

    Args:
        model: on the CPU.
        directory: `config.json`, `model.safetensors` and what MarianTokenizer needs.
        lines: what to compare on; blank ones are left out.

    Returns:
        None, and a warning is logged, where `transformers` is not installed or cannot be used.

    Raises:
        ModelError: they differ; names the line and the piece, what was found and what was wanted.
    """
    if not hugging_face.is_installed():
        logger.warning("not verified: transformers is not installed")
        return None
    try:
        runtime = hugging_face.HuggingFaceRuntime(directory, model.tokenizers)
    except ImportError as error:  # such as another version of what it needs
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        logger.warning("not verified: transformers cannot be used: %s", reason)
        return None
    return compare(model, runtime, lines)


def verify_ctranslate2(
    model: TrainedModel, directory: Path, lines: Sequence[str]
) -> Verification | None:
    """Compare a model with what CTranslate2 makes of its export in single precision.

    Arguments and errors are those of `verify_hugging_face`.
    """
    if not ctranslate2.is_installed():
        logger.warning("not verified: ctranslate2 is not installed")
        return None
    runtime = ctranslate2.CTranslate2Runtime(
        directory, model.tokenizers, most_pieces=num_positions(model) - 2
    )
    return compare(model, runtime, lines)


@torch.inference_mode()
def verify_coarse(model: TrainedModel, directory: Path, lines: Sequence[str]) -> Coarseness:
    """How far a quantised CTranslate2 export is from the model, which no rounding makes far.

    Raises:
        ModelError: further than rounding can explain.
    """
    target = model.tokenizers.target
    runtime = ctranslate2.CTranslate2Runtime(
        directory, model.tokenizers, most_pieces=num_positions(model) - 2, compute_type="default"
    )
    us = OurSide(model, bans_before_softmax=runtime.bans_before_softmax)
    sources = _sources(model.tokenizers.source, runtime, lines)
    limit = _limit(sources, runtime)
    chance = random.Random(1)
    apart: list[Tensor] = []
    kept = 0
    for start in range(0, len(sources), _BATCH):
        batch = sources[start : start + _BATCH]
        targets = [_drawn_target(target, chance)[: runtime.most_pieces] for _ in batch]
        apart += runtime.differences(batch, targets, us.logits(batch, targets))
        wanted = us.search(batch, beam_size=BEAM_SIZE, limit=limit)
        found = runtime.search(batch, beam_size=BEAM_SIZE, limit=limit)
        kept += sum(
            ours[0].ids == theirs[:limit] for ours, theirs in zip(wanted, found, strict=True)
        )
    difference = float(torch.cat(apart).mean()) if apart else 0.0
    if not difference <= _COARSEST:
        told = f"found log-probabilities {difference:.2g} apart in the mean"
        raise _mismatch(runtime, "with coarser weights", f"{told}, wanted at most {_COARSEST:g}")
    return Coarseness(difference, kept, len(sources))


@torch.inference_mode()
def compare(model: TrainedModel, runtime: Runtime, lines: Sequence[str]) -> Verification:
    """Run both sides on the lines: ids of the source, logits for given targets, both searches.

    Raises:
        ModelError: they differ; names the line and the piece, what was found and what was wanted.
    """
    lines = [line for line in lines if line.strip()]
    source, target = model.tokenizers.source, model.tokenizers.target
    us = OurSide(model, bans_before_softmax=runtime.bans_before_softmax)
    left_out = _compare_source_ids(source, runtime, lines)
    sources = _sources(source, runtime, lines)
    limit = _limit(sources, runtime)
    chance = random.Random(1)
    difference, near_ties, unfinished = 0.0, 0, 0
    for start in range(0, len(sources), _BATCH):
        batch = sources[start : start + _BATCH]
        targets = [_drawn_target(target, chance)[: runtime.most_pieces] for _ in batch]
        apart = runtime.differences(batch, targets, us.logits(batch, targets))
        for row, line_apart in enumerate(apart):
            pieces = [target.pieces[index] for index in (*targets[row], target.eos_id)]
            _refuse_if_apart(runtime, start + row + 1, pieces, line_apart)
            difference = max(difference, float(line_apart.max()))
        for beam_size in (1, BEAM_SIZE):
            wanted = us.search(batch, beam_size=beam_size, limit=limit)
            found = runtime.search(batch, beam_size=beam_size, limit=limit)
            for row, (ours, theirs) in enumerate(zip(wanted, found, strict=True)):
                # A beam that meets the limit is ended in another way by each program.
                if beam_size > 1 and any(len(hypothesis.ids) >= limit for hypothesis in ours):
                    unfinished += 1
                elif ours[0].ids != theirs[:limit]:
                    gap = _gap(us, batch[row], ours[0], theirs[:limit], target.eos_id, beam_size)
                    if abs(gap) >= TOLERANCE:
                        place = f"probe line {start + row + 1}, beam {beam_size}"
                        raise _other_pieces(runtime, target, place, ours[0].ids, theirs, gap)
                    near_ties += 1
    return Verification(
        runtime.name, len(sources), difference, near_ties, unfinished, dict(left_out)
    )


def _gap(
    us: OurSide, source: Ids, ours: Hypothesis, theirs: Ids, eos_id: int, beam_size: int
) -> float:
    """How much better our model likes our translation than theirs, in logits or in scores."""
    if beam_size > 1:
        return ours.score - us.score(source, theirs)
    # Greedy search goes its own way from the first piece that differs.
    place = _first_difference(ours.ids, theirs)
    logits = us.logits([source], [theirs])[0][place]  # (V,)
    return float(logits[(*ours.ids, eos_id)[place]] - logits[(*theirs, eos_id)[place]])


def _refuse_if_apart(runtime: Runtime, line: int, pieces: Sequence[str], apart: Tensor) -> None:
    # What is no number is not at most anything, and `argmax` finds it first.
    worst = int(apart.argmax())
    if not float(apart[worst]) <= TOLERANCE:
        place = f"probe line {line}, piece {worst + 1} (`{pieces[worst]}`)"
        told = f"found logits {float(apart[worst]):.2g} apart, wanted at most {TOLERANCE:g}"
        raise _mismatch(runtime, place, told)


def _compare_source_ids(
    tokenizer: Tokenizer, runtime: Runtime, lines: Sequence[str]
) -> Counter[str]:
    """Compare how both sides cut lines, but those that they read differently by design.

    Returns:
        How many lines were left out, by the reason.
    """
    # Elsewhere a special piece that is spelled out in a text is taken for itself, and so is what
    # looks like a language tag at its start, whether the model knows such tags or not.
    ids = {tokenizer.eos_id, tokenizer.unk_id, tokenizer.start_id, *tokenizer.banned_ids}
    special = [tokenizer.pieces[index] for index in ids]
    left_out: Counter[str] = Counter()
    plain = []
    for number, line in enumerate(lines, 1):
        tag = _MARIAN_TAG.match(line)
        if any(piece in line for piece in special):
            left_out["special pieces stand in them, which are not read as text there"] += 1
        elif (tag[0] if tag else "") != tokenizer.language_tag(line):
            left_out["they begin with what is read as a language tag there alone"] += 1
        else:
            plain.append((number, line))
    texts = [line for _, line in plain]
    found = runtime.encode(texts) if texts else []
    if found is None:
        return Counter()
    for (number, _), theirs, ours in zip(plain, found, tokenizer.encode(texts), strict=True):
        if theirs != tuple(ours):
            place = f"probe line {number}, piece {_first_difference(ours, theirs) + 1}"
            raise _mismatch(runtime, place, f"found ids {list(theirs)}, wanted {ours}")
    return left_out


def _sources(tokenizer: Tokenizer, runtime: Runtime, lines: Sequence[str]) -> list[Ids]:
    longest = min(_MOST_PIECES, runtime.most_pieces)
    return [tuple(ids[:longest]) for ids in tokenizer.encode(lines) if ids]


def _limit(sources: Sequence[Ids], runtime: Runtime) -> int:
    longest = max(map(len, sources), default=0)
    return min(2 * longest + 10, _MOST_PIECES, runtime.most_pieces)


def _drawn_target(tokenizer: Tokenizer, chance: random.Random) -> Ids:
    """Any pieces that may be written, so that the whole vocabulary has a chance."""
    kept_out = {tokenizer.eos_id, *tokenizer.banned_ids}
    usable = [index for index in range(tokenizer.vocab_size) if index not in kept_out]
    return tuple(chance.choices(usable, k=chance.randint(0, _LONGEST_TARGET)))


def _other_pieces(
    runtime: Runtime, target: Tokenizer, place: str, ours: Ids, theirs: Ids, gap: float
) -> ModelError:
    index = _first_difference(ours, theirs)
    wanted, found = (target.pieces[(*ids, target.eos_id)[index]] for ids in (ours, theirs))
    told = f"found `{found}`, wanted `{wanted}`, whose translation scores {gap:.2g} more"
    return _mismatch(runtime, f"{place}, piece {index + 1}", told)


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    same = (a == b for a, b in zip(ours, theirs, strict=False))
    return next(
        (place for place, equal in enumerate(same) if not equal), min(len(ours), len(theirs))
    )


def _mismatch(runtime: Runtime, place: str, told: str) -> ModelError:
    return ModelError(
        f"{runtime.name} does not compute what tfm computes: {place}: {told}",
        hint="please report it together with the model's `config.json`; nothing was written",
    )
