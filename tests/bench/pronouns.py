"""How well a model of the sample corpus tells what `it` stands for, and which head looks there.

    python -m tests.bench.pronouns MODEL

`data/pronouns` has sentences with two nouns of different gender before `it`, four for each pair of
nouns. How often the largest weight of a head is on the right noun is counted in the encoder's
self-attention from `it`, and in the cross-attention at the step that writes il or elle. The best
head of every other pair is reported on the rest, beside a head drawn at random and the best head
of the same model without training: of all lines, and of those with il and elle alone. What carries
the choice is told by activation patching: of two sentences that differ in the adjective, the share
of the way from il to elle that is gone when one vector of the encoder is replaced, by the word
that the vector belongs to.
"""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tfm_cli.corpus.batch import make_batch
from tfm_cli.model.recording import recording
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.pictures.explanation import Array
from tfm_cli.pictures.patching import contrast
from tfm_cli.tokenizer.tokenizer import Tokenizer

DATA = Path(__file__).resolve().parents[2] / "data"
IT = re.compile(r" because (it) ")
ADJECTIVE = re.compile(r"(\w+)\.$")
PRONOUN = re.compile(r" parce qu'(il|elle) ")
WORDS = ("il", "elle")
LINES_OF_A_PAIR = 4  # two with the animal first, two with the thing first


class Case(NamedTuple):
    """A sentence with its translation, and the noun that `it` stands for."""

    source: str
    target: str
    right: str


class Head(NamedTuple):
    """A head by layer and number, from 0, of the encoder or of cross-attention."""

    attention: str  # with {} for the layer, see `recording`
    layer: int
    number: int

    def __str__(self) -> str:
        """Return its name as the pictures count, from 1."""
        name = self.attention.format(self.layer + 1)
        return f"{name}, head {self.number + 1}"


@dataclass(frozen=True)
class Shares:
    """How often the largest weight of each head was on the right noun."""

    first_half: Mapping[Head, float]
    second_half: Mapping[Head, float]

    @property
    def best(self) -> Head:
        """Return the head that is best on the first half."""
        return max(self.first_half, key=lambda head: self.first_half[head])


def read_cases(directory: Path = DATA) -> list[Case]:
    """Return the held-out sentences."""

    def lines(name: str) -> list[str]:
        return (directory / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")

    rights = [line.partition("\t")[0] for line in lines("pronouns.antecedents")]
    sides = zip(lines("pronouns.en"), lines("pronouns.fr"), rights, strict=True)
    return [Case(*case) for case in sides]


def resolved(cases: Sequence[Case], translations: Sequence[str]) -> list[bool]:
    """Return for each translation whether il or elle is the reference's."""
    found = [PRONOUN.search(line) for line in translations]
    return [
        match is not None and match[1] == PRONOUN.findall(case.target)[0]
        for case, match in zip(cases, found, strict=True)
    ]


def shares(model: TrainedModel, cases: Sequence[Case]) -> Shares:
    """Return how often the largest weight of each head is on the right noun, on both halves.

    The halves have every other pair of nouns.
    """
    lines_of_a_pair = LINES_OF_A_PAIR * len(cases) // len(read_cases())
    hits: dict[Head, tuple[list[bool], list[bool]]] = {}
    for number, case in enumerate(cases):
        half = number // lines_of_a_pair % 2
        for head, is_right in _looks(model, case).items():
            hits.setdefault(head, ([], []))[half].append(is_right)
    first, second = (
        {head: sum(halves[half]) / len(halves[half]) for head, halves in hits.items()}
        for half in (0, 1)
    )
    return Shares(first, second)


def _looks(model: TrainedModel, case: Case) -> dict[Head, bool]:
    """Return for each head whether its largest weight is on a piece of the right noun."""
    source, target = model.tokenizers
    noun = re.search(rf"\b{case.right}\b", case.source)
    it, pronoun = IT.search(case.source), PRONOUN.search(case.target)
    assert noun
    assert it
    assert pronoun
    right = _pieces(source, case.source, noun.span())
    # The step that writes a piece has the piece before it as input, behind the start token.
    queries = {
        "encoder.{}.self_attention": _pieces(source, case.source, it.span(1))[-1],
        "decoder.{}.cross_attention": _pieces(target, case.target, pronoun.span(1))[-1],
    }
    values = _forward(model, case)
    looks = {}
    for attention, query in queries.items():
        layer = 0
        while (weights := values.get(f"{attention.format(layer)}.weights")) is not None:
            for number, row in enumerate(weights[0, :, query]):  # (S,) of each head
                looks[Head(attention, layer, number)] = int(row.argmax()) in right
            layer += 1
    return looks


def carried(model: TrainedModel, cases: Sequence[Case]) -> dict[str, list[float]]:
    """Return the mean share of the way that a vector of each word carries, by layer of the encoder.

    The first share of a word is that of the input of the layers. Each case stands beside another
    that differs in the adjective.
    """
    source, target = model.tokenizers
    shares: dict[str, list[Array]] = {}
    for one, other in zip(cases[::2], cases[1::2], strict=True):
        ids = [[*source.encode([each.source])[0], source.eos_id] for each in (one, other)]
        target_ids = [[*target.encode([each.target])[0], target.eos_id] for each in (one, other)]
        if len(ids[0]) != len(ids[1]):
            continue
        made = contrast(
            model.transformer, target, ids=(ids[0], ids[1]), sentences=(one.source, other.source),
            pieces=((), ()), target_ids=(target_ids[0], target_ids[1]),
        )  # fmt: skip
        patterns = {
            "it": IT, "the adjective": ADJECTIVE, "its noun": re.compile(rf"\b({one.right})\b"),
            "the other noun": re.compile(rf"\b({other.right})\b"),
        }  # fmt: skip
        rest = set(range(len(ids[0])))
        for name, pattern in patterns.items():
            match = pattern.search(one.source)
            assert match
            positions = _pieces(source, one.source, match.span(1))
            rest.difference_update(positions)
            shares.setdefault(name, []).append(made.shares[:, positions].sum(axis=1))
        shares.setdefault("the rest", []).append(made.shares[:, sorted(rest)].sum(axis=1))
    return {name: np.mean(found, axis=0).tolist() for name, found in shares.items()}


def _pieces(tokenizer: Tokenizer, line: str, span: tuple[int, int]) -> list[int]:
    """Return the positions of the pieces that have characters of a span of a line."""
    (spans,) = tokenizer.encode_spans([line])
    return [
        position for position, (begin, end) in enumerate(spans) if begin < span[1] and end > span[0]
    ]


def _forward(model: TrainedModel, case: Case) -> dict[str, Tensor]:
    source, target = model.tokenizers
    batch = make_batch(
        source.encode([case.source]), target.encode([case.target]), start_id=target.start_id,
        eos_id=target.eos_id, source_eos_id=source.eos_id,
    )  # fmt: skip
    with torch.no_grad(), recording(model.transformer) as values:
        model.transformer(batch.source, None, batch.target_in)
    return values


def main(directory: Path) -> None:
    """Print the figures of a model."""
    torch.set_num_threads(1)
    cases = read_cases()
    translated = subprocess.run(
        [sys.executable, "-m", "tfm_cli", "translate", "--quiet", "--model", str(directory)],
        input="".join(f"{case.source}\n" for case in cases), capture_output=True, text=True,
        check=True,
    ).stdout.removesuffix("\n").split("\n")  # fmt: skip
    right = resolved(cases, translated)
    exact = sum(line == case.target for line, case in zip(translated, cases, strict=True))
    print(f"il or elle is right in {sum(right)} of {len(cases)} ({sum(right) / len(cases):.1%})")
    print(f"the whole line is right in {exact} ({exact / len(cases):.1%})")

    model = load_model(directory, torch.device("cpu"))
    with torch.inference_mode():
        by_word = carried(model, cases)
    print("share of the way from one pronoun to the other, before the layers and after each:")
    for word, by_layer in by_word.items():
        print(f"  {word:15} {' '.join(f'{share:5.2f}' for share in by_layer)}")
    sets = [cases, *([case for case in cases if f"'{word} " in case.target] for word in WORDS)]
    trained = [shares(model, some) for some in sets]
    torch.manual_seed(1)
    model.transformer.reset_parameters()
    untrained = [shares(model, some) for some in sets]
    some = Random(1).choice(sorted(trained[0].second_half))
    print("largest weight on the right noun, on the half that the head was not chosen on:")
    for what, found, other in zip(("all", *WORDS), trained, untrained, strict=True):
        print(
            f"  {what}: {found.best}: {found.second_half[found.best]:.1%}; {some}, drawn at "
            f"random: {found.second_half[some]:.1%}; without training, {other.best}: "
            f"{other.second_half[other.best]:.1%}"
        )
    print("all, by layer and head; of these il, elle:")
    for attention in ("encoder.{}.self_attention", "decoder.{}.cross_attention"):
        for layer in sorted({head.layer for head in trained[0].first_half if head[0] == attention}):
            heads = sorted(one for one in trained[0].first_half if one[:2] == (attention, layer))
            row = "   ".join(
                " ".join(f"{found.second_half[head]:4.0%}" for found in trained) for head in heads
            )
            print(f"  {attention.format(layer + 1):27} {row}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
