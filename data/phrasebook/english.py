"""Trees written in English."""

from typing import assert_never

from phrasebook.orthography import indefinite_article, write
from phrasebook.syntax import (
    Agreement,
    Clause,
    Described,
    Figure,
    Fixed,
    Link,
    Locality,
    Modifier,
    NounPhrase,
    Pair,
    Person,
    Phrase,
    Pronoun,
    Quality,
    Question,
    Relative,
    Sentence,
    Span,
)
from phrasebook.words import Adverb, Conjunction

PRONOUNS = {
    "I": "me",
    "you": "you",
    "he": "him",
    "she": "her",
    "it": "it",
    "we": "us",
    "they": "them",
}
PLURAL_DETERMINERS = {"this": "these", "that": "those"}
WITHOUT_TO = {"can", "must"}


def sentence(tree: Sentence) -> str:
    """The sentence as it is written."""
    if isinstance(tree, Question):
        return write(indefinite_article(_question(tree)), "?")
    words: list[str] = []
    if tree.opener:
        words += [*_modifier(tree.opener), ","]
    if tree.condition:
        words += [*_link(tree.condition), ","]
    words += _clause(tree.clause)
    if tree.link:
        words += _link(tree.link)
    return write(indefinite_article(words), ".")


def _link(link: Link) -> list[str]:
    return [*_conjunction(link.conjunction), *_clause(link.clause)]


def _conjunction(conjunction: Conjunction) -> list[str]:
    return [",", conjunction.key] if conjunction.key in {"but", "so"} else [conjunction.key]


def _question(tree: Question) -> list[str]:
    clause = tree.clause
    match tree.asked:
        case "who":
            return _clause(clause)
        case "whether":
            return _clause(clause, is_question=True)
        case Described() as asked:
            return _noun_phrase(asked) + _clause(clause, is_question=True, without_object=True)
        case "how old":
            return ["how", "old", *_verb(clause, is_question=True)]
        case "whom":
            return ["who", *_clause(clause, is_question=True)]
        case asked:
            return [
                *asked.split(),
                *_clause(clause, is_question=True, without_object=asked == "what"),
            ]


def _clause(
    clause: Clause,
    *,
    is_question: bool = False,
    without_subject: bool = False,
    without_object: bool = False,
) -> list[str]:
    words = [] if is_question or without_subject else _noun_phrase(clause.subject)
    words += _verb(clause, is_question=is_question)
    words += _objects(clause, without_object=without_object)
    if isinstance(clause.predicate, Quality):
        words += _quality(clause.predicate)
    elif clause.predicate:
        words += _noun_phrase(clause.predicate)
    if clause.infinitive:
        words += [] if clause.verb.key in WITHOUT_TO else ["to"]
        words += _clause(clause.infinitive, without_subject=True)
    if clause.content:
        words += ["that", *_clause(clause.content)]
    for modifier in clause.modifiers:
        words += _modifier(modifier)
    return words


def _objects(clause: Clause, *, without_object: bool) -> list[str]:
    recipient = _noun_phrase(clause.recipient, is_object=True) if clause.recipient else []
    direct = (
        [] if without_object or not clause.object else _noun_phrase(clause.object, is_object=True)
    )
    if clause.verb.key == "be old":
        return [*direct, "old"]
    if clause.verb.key == "be there" and clause.negation:
        return ["no", *direct]
    if recipient and not clause.recipient_is_first:
        return [*direct, "to", *recipient]
    return recipient + direct


def _verb(clause: Clause, *, is_question: bool) -> list[str]:
    auxiliary, main = _verb_forms(clause, is_question=is_question)
    negation = [] if clause.verb.key == "be there" else clause.negation.split()
    if clause.adverb:
        negation.append(clause.adverb.key)
    if auxiliary == ["can"] and negation[:1] == ["not"]:
        auxiliary, negation = ["cannot"], negation[1:]
    particle = [] if clause.verb.key in {"be there", "be old"} else clause.verb.particle.split()
    subject = _noun_phrase(clause.subject) if is_question else []
    return [*auxiliary, *subject, *negation, *main, *particle]


def _verb_forms(clause: Clause, *, is_question: bool) -> tuple[list[str], list[str]]:
    """Auxiliary and main verb: what a question turns round and what `not` stands between."""
    verb, tense, subject = clause.verb, clause.tense, clause.subject.agreement
    if verb.key == "be there" and clause.object:
        subject = clause.object.agreement
    if tense == "infinitive":
        return [], [verb.base]
    if verb.key == "must":
        if tense == "past" and is_question:
            return ["did"], ["have", "to"]
        return {"present": (["must"], []), "past": ([], ["had", "to"])}.get(
            tense, (["will"], ["have", "to"])
        )
    if verb.key == "can":
        return {"present": (["can"], []), "past": (["could"], [])}.get(
            tense, (["will"], ["be", "able", "to"])
        )
    if tense == "future":
        return ["will"], [verb.base]
    if verb.base == "be":
        return [_be(subject, is_past=tense in {"past", "imperfect"})], []
    if clause.is_progressive:
        return [_be(subject, is_past=False)], [verb.gerund]
    is_third = subject.person == 3 and not subject.is_plural
    if is_question or clause.negation == "not":
        return ["did" if tense == "past" else "does" if is_third else "do"], [verb.base]
    return [], [verb.past if tense == "past" else third(verb.base) if is_third else verb.base]


def third(base: str) -> str:
    """The third person singular of the present."""
    if base == "have":
        return "has"
    if base[-1] == "y" and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "x", "ch", "sh", "o")) else "s")


def _be(subject: Agreement, *, is_past: bool) -> str:
    if subject.is_plural:
        return "were" if is_past else "are"
    if is_past:
        return "was"
    return "am" if subject.person == 1 else "is"


def _noun_phrase(phrase: NounPhrase, *, is_object: bool = False) -> list[str]:
    match phrase:
        case Pronoun():
            word = _pronoun(phrase)
            return [PRONOUNS[word] if is_object else word]
        case Fixed():
            return [phrase.english]
        case Person():
            return [phrase.name.key]
        case Pair():
            second = _noun_phrase(phrase.second, is_object=is_object)
            return [*_noun_phrase(phrase.first), phrase.conjunction.key, *second]
        case Described():
            words = _determiner(phrase) + [adjective.key for adjective in phrase.adjectives]
            words += phrase.noun.english[phrase.is_plural].split()
            words += (
                ["of", *phrase.content.english[not phrase.content.mass].split()]
                if phrase.content
                else []
            )
            return words + (_relative(phrase.relative, phrase) if phrase.relative else [])
        case _:
            assert_never(phrase)


def _pronoun(pronoun: Pronoun) -> str:
    label = pronoun.agreement.label
    if label != "he":
        return label
    return "it" if pronoun.is_thing else "she" if pronoun.agreement.is_feminine else "he"


def _determiner(phrase: Described) -> list[str]:
    if phrase.owner:
        *rest, last = _noun_phrase(phrase.owner)
        return [*rest, last + "'s"]
    if phrase.number:
        return [phrase.number.key]
    if phrase.determiner in {"bare", "generic"}:
        return []
    if phrase.is_plural:
        return PLURAL_DETERMINERS.get(phrase.determiner, phrase.determiner).split()
    return phrase.determiner.split()


def _relative(relative: Relative, antecedent: Described) -> list[str]:
    match relative.role:
        case "subject":
            pronoun = "who" if is_human(antecedent) else "that"
            return [pronoun, *_clause(relative.clause, without_subject=True)]
        case "object":
            return ["that", *_clause(relative.clause, without_object=True)]
        case "place":
            return ["where", *_clause(relative.clause)]


def is_human(phrase: Described) -> bool:
    """Whether the noun is a person's."""
    return phrase.noun.group in {"parent", "kin", "folk", "job", "baby"}


def _quality(quality: Quality) -> list[str]:
    adjective = quality.adjective
    words = [quality.degree.key] if quality.degree else []
    match quality.comparison:
        case "more":
            words += [*adjective.comparative.split(), "than"]
        case "less":
            words += ["less", adjective.key, "than"]
        case "as":
            words += ["as", adjective.key, "as"]
        case "":
            words.append(adjective.key)
    return words + (_noun_phrase(quality.than, is_object=True) if quality.than else [])


def _modifier(modifier: Modifier) -> list[str]:
    match modifier:
        case Adverb():
            return modifier.key.split()
        case Phrase():
            return [
                *modifier.preposition.key.split(),
                *_noun_phrase(modifier.object, is_object=True),
            ]
        case Locality():
            return [modifier.relation, *modifier.place.key.split()]
        case Span():
            time = [modifier.number.key, modifier.unit.english[1]]
            return [*time, "ago"] if modifier.relation == "ago" else [modifier.relation, *time]
        case Figure(relation="at"):
            return ["at", str(modifier.value), "o'clock"]
        case Figure():
            return ["in", str(modifier.value)]
        case _:
            assert_never(modifier)
