"""The held-out combinations of the sample corpus are in no set but their own."""

import re
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.torture  # the corpus is built; `make check` compares it with its files

AUXILIARIES = {
    True: ["suis", "est", "sommes", "êtes", "sont"],
    False: ["ai", "a", "avons", "avez", "ont"],
}
Lines = Callable[[str], tuple[str, ...]]


def words(line: str) -> list[str]:
    """The words of a line of either language, without apostrophes, hyphens and stops."""
    return re.findall(r"\w+", line)


@pytest.fixture(scope="module")
def training_lines_with(read_lines: Lines) -> dict[str, list[int]]:
    """For each French word the training lines that have it, in lower case."""
    actual: dict[str, list[int]] = {}
    for number, line in enumerate(read_lines("train.fr")):
        for word in set(words(line.lower())):
            actual.setdefault(word, []).append(number)
    return actual


def forms_of(project: SimpleNamespace, infinitive: str) -> set[str]:
    """Every form of a French verb that the corpus may have."""
    verb = project.conjugation
    participle = verb.participle(infinitive)
    agreeing = {
        verb.agree(participle, feminine=feminine, plural=plural)
        for feminine in (False, True)
        for plural in (False, True)
    }
    return {infinitive, *verb.present(infinitive), *verb.future(infinitive), *agreeing}


def test_combinations_occur_in_no_other_set(project: SimpleNamespace) -> None:
    held_out = project.corpus.held_out
    for name in ("train", "valid", "test", "pronouns"):
        for example in project.corpus.sets[name]:
            for usage in example.usages:
                assert (usage.verb, usage.object) not in held_out.pairs, example.source
                assert (usage.verb, usage.tense, usage.person) not in held_out.forms, example.source


def test_every_line_of_combinations_has_one_and_half_are_of_each_kind(
    project: SimpleNamespace,
) -> None:
    held_out = project.corpus.held_out
    examples = project.corpus.sets["combinations"]
    with_pair = [one for one in examples if held_out.pairs_in(one.usages)]
    with_form = [one for one in examples if held_out.forms_in(one.usages)]

    assert len(with_pair) == len(with_form) == len(examples) // 2
    assert {one.source for one in with_pair}.isdisjoint(one.source for one in with_form)


def test_parts_of_combinations_occur_in_training(project: SimpleNamespace) -> None:
    usages = [usage for one in project.corpus.sets["train"] for usage in one.usages]
    verbs = Counter(usage.verb for usage in usages)
    objects = Counter(usage.object for usage in usages)
    tenses = Counter((usage.verb, usage.tense) for usage in usages)
    persons = {(usage.tense, usage.person) for usage in usages}

    for verb, noun in project.corpus.held_out.pairs:
        assert verbs[verb] >= 15
        assert objects[noun] >= 8
    for verb, tense, person in project.corpus.held_out.forms:
        assert tenses[verb, tense] >= 3, (verb, tense)
        assert (tense, person) in persons


def test_no_training_line_has_verb_and_noun_of_a_held_out_pair(
    project: SimpleNamespace, read_lines: Lines, training_lines_with: dict[str, list[int]]
) -> None:
    verbs = {project.verb_name(verb): verb for verb in project.verbs.ALL_VERBS}
    for name, key in sorted(project.corpus.held_out.pairs):
        verb, noun = verbs[name], project.nouns.NOUNS[key]
        if verb.french == "avoir":  # the auxiliary, so everywhere
            continue
        bases = "|".join({verb.base, verb.past, verb.gerund, project.third(verb.base)})
        verb_said = re.compile(rf"\b({bases}) {verb.particle}".rstrip() + r"\b", re.IGNORECASE)
        noun_said = re.compile(rf"\b({'|'.join(noun.english)})\b", re.IGNORECASE)
        for form in forms_of(project, verb.french):
            for number in training_lines_with.get(form, []):
                source = read_lines("train.en")[number]
                assert not (noun_said.search(source) and verb_said.search(source)), source


def test_no_training_line_has_a_held_out_form(
    project: SimpleNamespace, read_lines: Lines, training_lines_with: dict[str, list[int]]
) -> None:
    infinitives = {verb.french for verb in project.verbs.ALL_VERBS}
    conjugation = project.conjugation
    verb_forms = Counter(
        form
        for infinitive in infinitives
        for form in (*conjugation.present(infinitive), *conjugation.future(infinitive))
    )
    nouns = {word for noun in project.nouns.NOUNS.values() for word in words(" ".join(noun.french))}
    adverbs = "pas|jamais|plus|souvent|toujours|parfois|rarement|aussi|déjà|bien|mal|beaucoup|trop"
    slots = {"I": 0, "he": 1, "we": 2, "you": 3, "they": 4}
    verbs = {project.verb_name(verb): verb for verb in project.verbs.ALL_VERBS}
    num_checked = 0
    for name, tense, person in sorted(project.corpus.held_out.forms):
        verb = verbs[name]
        if tense == "past":
            finite = AUXILIARIES[verb.takes_etre][slots[person]]
            stem = conjugation.participle(verb.french)
            pattern = re.compile(
                rf"\b{finite}(?:-(?:t-)?(?:ils?|elles?|vous|nous))?(?: (?:{adverbs}))*"
                rf" {stem}(?:e|s|es)?\b"
            )
            for agreeing in forms_of(project, verb.french):
                for number in training_lines_with.get(agreeing, []):
                    line = read_lines("train.fr")[number].lower()
                    assert not pattern.search(line), line
            num_checked += 1
            continue
        form = getattr(conjugation, tense)(verb.french)[slots[person]]
        if verb_forms[form] == 1 and form not in nouns:
            assert form not in training_lines_with, (name, tense, person)
            num_checked += 1
    assert num_checked > 0.9 * len(project.corpus.held_out.forms)
