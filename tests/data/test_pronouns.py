"""No shortcut tells what `it` stands for in the sample corpus: all of a sentence is needed."""

import re
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

Lines = Callable[[str], tuple[str, ...]]
SOURCE = re.compile(
    r"(?:The|This|That) (?P<first>\w+) (?P<verb>.+) (?:the|this|that) (?P<second>\w+)"
    r" because it (?:is|was) (?:too|very|so) (?P<adjective>\w+)\."
)
PRONOUN = re.compile(r" parce qu'(ils?|elles?) ")


@dataclass(frozen=True)
class Case:
    """A sentence with two nouns before `it`, read from the text alone."""

    first: str
    second: str
    verb: str
    adjective: str
    pronoun: str  # il or elle
    first_is_feminine: bool

    @property
    def pair(self) -> frozenset[str]:
        return frozenset((self.first, self.second))

    @property
    def right(self) -> str:
        return self.first if self.position == 1 else self.second

    @property
    def position(self) -> int:
        return 1 if (self.pronoun == "elle") == self.first_is_feminine else 2


def read_cases(project: SimpleNamespace, read_lines: Lines, name: str) -> list[Case]:
    """The sentences of a set with `because it` that have two nouns of different gender."""
    cases = []
    nouns = project.nouns
    animals = set(nouns.noun_keys("animal"))
    things = {key for scene in project.pronouns.SCENES for key in nouns.noun_keys(scene.things)}
    for source, target in zip(read_lines(f"{name}.en"), read_lines(f"{name}.fr"), strict=True):
        match = SOURCE.fullmatch(source)
        pair = {match["first"], match["second"]} if match else set()
        is_antecedent_told = (
            match and match["adjective"] in project.modifiers.ADJECTIVES
        )  # not: late
        if match and is_antecedent_told and len(pair & animals) == len(pair & things) == 1:
            genders = {key: nouns.NOUNS[key].gender for key in pair}
            if len(set(genders.values())) == 1:  # both nouns give the same pronoun
                continue
            pronoun = PRONOUN.search(target)
            assert pronoun, target
            cases.append(
                Case(
                    **match.groupdict(),
                    pronoun=pronoun[1],
                    first_is_feminine=genders[match["first"]] == "f",
                )
            )
    return cases


@pytest.fixture(scope="module")
def held_out(project: SimpleNamespace, read_lines: Lines) -> list[Case]:
    return read_cases(project, read_lines, "pronouns")


@pytest.fixture(scope="module")
def trained(project: SimpleNamespace, read_lines: Lines) -> list[Case]:
    return read_cases(project, read_lines, "train")


def test_the_lecture_s_example_is_held_out(read_lines: Lines) -> None:
    pairs = list(zip(read_lines("pronouns.en"), read_lines("pronouns.fr"), strict=True))

    assert pairs[:2] == [
        (
            "The animal did not cross the street because it was too tired.",
            "L'animal n'a pas traversé la rue parce qu'il était trop fatigué.",
        ),
        (
            "The animal did not cross the street because it was too wide.",
            "L'animal n'a pas traversé la rue parce qu'elle était trop large.",
        ),
    ]


def test_every_line_is_a_case_with_its_antecedent(held_out: list[Case], read_lines: Lines) -> None:
    antecedents = [tuple(line.split("\t")) for line in read_lines("pronouns.antecedents")]

    assert len(held_out) == len(antecedents) == 480
    for case, (right, wrong) in zip(held_out, antecedents, strict=True):
        assert case.right == right
        assert case.pair == {right, wrong}


def test_adjective_is_said_of_the_right_noun_and_never_of_the_wrong_one(
    project: SimpleNamespace, held_out: list[Case], trained: list[Case]
) -> None:
    for case in held_out + trained:
        nouns = project.modifiers.ADJECTIVES[case.adjective].nouns
        assert set(nouns) & case.pair == {case.right}, case


def test_training_has_pairs_of_one_gender_too(
    project: SimpleNamespace, trained: list[Case], read_lines: Lines
) -> None:
    """Without them, one noun would tell the gender of the other."""
    matches = [match for line in read_lines("train.en") if (match := SOURCE.fullmatch(line))]
    nouns = project.nouns.NOUNS
    genders = [
        {nouns[key].gender for key in (match["first"], match["second"]) if key in nouns}
        for match in matches
        if match["adjective"] in project.modifiers.ADJECTIVES
    ]

    share = sum(len(each) == 1 for each in genders) / len(genders)
    assert 0.3 < share < 0.5
    assert len(trained) > 4000


def test_training_has_many_words_and_each_of_those_held_out(
    held_out: list[Case], trained: list[Case]
) -> None:
    assert len(trained) > 4000
    assert len({noun for case in trained for noun in case.pair}) > 70
    assert len({case.adjective for case in trained}) > 15
    assert len({case.verb for case in trained}) > 40
    for case in held_out:
        assert any(case.adjective == one.adjective for one in trained)
        for noun in case.pair:
            assert sum(noun in one.pair for one in trained) >= 10, noun


def test_no_other_line_has_both_nouns_of_a_held_out_pair(
    project: SimpleNamespace, held_out: list[Case], read_lines: Lines
) -> None:
    nouns = project.nouns.NOUNS
    keys = {form: key for key, noun in nouns.items() for form in noun.english}
    pairs = {case.pair for case in held_out}
    assert len(pairs) == 120
    for name in ("train", "valid", "test", "combinations"):
        for line in read_lines(f"{name}.en"):
            present = {keys[word] for word in re.findall(r"\w+", line.lower()) if word in keys}
            # `fish` and `orange` have no plural of their own
            assert not any(pair <= present for pair in pairs), line


def test_held_out_set_is_balanced(held_out: list[Case]) -> None:
    half = len(held_out) // 2

    assert Counter(case.pronoun for case in held_out) == {"il": half, "elle": half}
    assert Counter(case.position for case in held_out) == {1: half, 2: half}
    assert Counter(case.first_is_feminine for case in held_out) == {True: half, False: half}
    for pair in {case.pair for case in held_out}:
        of_pair = [case for case in held_out if case.pair == pair]
        assert {(case.first, case.right) for case in of_pair} == {
            (first, right) for first in pair for right in pair
        }


def test_training_is_as_balanced_as_a_fair_coin(trained: list[Case]) -> None:
    tosses: dict[str, list[bool]] = {}
    for case in trained:
        for toss, is_head in {
            f"{case.adjective}: il": case.pronoun == "il",
            f"{case.adjective}: first noun": case.position == 1,
            f"{case.first}: right": case.position == 1,
            f"{case.second}: right": case.position == 2,
            "feminine first": case.first_is_feminine,
            "first noun": case.position == 1,
            "il": case.pronoun == "il",
        }.items():
            tosses.setdefault(toss, []).append(is_head)

    for toss, heads in tosses.items():
        deviation = abs(sum(heads) / len(heads) - 0.5)
        assert deviation < 5 * 0.5 / len(heads) ** 0.5, toss


FEATURES: dict[str, Callable[[Case], Hashable]] = {
    "adjective": lambda case: case.adjective,
    "verb": lambda case: case.verb,
    "pair of nouns": lambda case: case.pair,
    "first noun": lambda case: case.first,
    "second noun": lambda case: case.second,
    "order of genders": lambda case: case.first_is_feminine,
    "pair of nouns in order": lambda case: (case.first, case.second),
    "adjective and verb": lambda case: (case.adjective, case.verb),
}
ANSWERS: dict[str, Callable[[Case], Hashable]] = {
    "pronoun": lambda case: case.pronoun,
    "position": lambda case: case.position,
}


def accuracy(
    trained: list[Case], held_out: list[Case], feature: Callable[[Case], Hashable],
    answer: Callable[[Case], Hashable],
) -> float:  # fmt: skip
    """Of a classifier that answers what was most frequent in training with the same feature."""
    counts: dict[Hashable, Counter[Hashable]] = {}
    for case in trained:
        counts.setdefault(feature(case), Counter())[answer(case)] += 1
    usual = Counter(answer(case) for case in trained)
    right = sum(
        counts.get(feature(case), usual).most_common(1)[0][0] == answer(case) for case in held_out
    )
    return right / len(held_out)


@pytest.mark.parametrize("feature", FEATURES)
def test_no_part_of_a_sentence_tells_the_pronoun(
    trained: list[Case], held_out: list[Case], feature: str
) -> None:
    actual = accuracy(trained, held_out, FEATURES[feature], ANSWERS["pronoun"])

    assert 0.4 < actual < 0.6


@pytest.mark.parametrize("feature", sorted(FEATURES.keys() - {"adjective and verb"}))
def test_no_word_tells_the_position_of_the_right_noun(
    trained: list[Case], held_out: list[Case], feature: str
) -> None:
    actual = accuracy(trained, held_out, FEATURES[feature], ANSWERS["position"])

    assert 0.4 < actual < 0.6
