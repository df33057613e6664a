"""What a clause has besides its object: somebody it is for, a place, a manner, company."""

from dataclasses import replace

from phrasebook.chooser import Chooser
from phrasebook.modifiers import ADVERBS, PLACE_NAMES, PREPOSITION_WORDS
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.phrases import journey, other_person, person_name, place, relative
from phrasebook.syntax import (
    Clause,
    Described,
    Figure,
    Locality,
    Modifier,
    Phrase,
    Pronoun,
    heads,
)
from phrasebook.times import duration

LETTERS = frozenset(noun_keys("letterlike poem photo gift"))
SEASONINGS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("coffee",): ("sugar", "milk"),
    ("tea",): ("sugar", "milk"),
    ("soup",): ("salt",),
    ("salad",): ("oil", "salt"),
    ("meat",): ("salt",),
    ("fish",): ("oil", "salt"),
    ("rice",): ("salt", "oil"),
    ("bread",): ("butter", "jam"),
    ("strawberry",): ("sugar",),
    ("tomato",): ("salt", "oil"),
}
PLACES = tuple(PLACE_NAMES.values())


def add_recipient(chooser: Chooser, built: Clause) -> Clause:
    """The clause with somebody whom the thing is given to, read to …"""
    if built.verb.key in {"write", "send"} and not LETTERS.issuperset(heads(built.object)):
        return built
    recipient = other_person(chooser, built.subject)
    can_be_first = built.verb.key != "explain"
    can_be_first = can_be_first and not isinstance(built.object, Pronoun)
    is_first = can_be_first and (isinstance(recipient, Pronoun) or chooser.chance(0.3))
    return replace(built, recipient=recipient, recipient_is_first=is_first)


def season(chooser: Chooser, built: Clause) -> Clause:
    """The clause with what goes with the food: tea without sugar, rice with oil."""
    choices = SEASONINGS.get(heads(built.object)[-1:], ())
    is_meal = built.verb.key in {"eat", "drink", "prepare", "serve", "like", "prefer"}
    if not choices or not is_meal or isinstance(built.object, Pronoun) or chooser.chance(0.65):
        return built
    key = chooser.pick(choices)
    preposition = PREPOSITION_WORDS[chooser.pick(("with", "without"))]
    seasoning = Described(noun=NOUNS[key], determiner="bare")
    return replace(built, modifiers=(Phrase(preposition, seasoning),))


def add_complement(chooser: Chooser, built: Clause) -> Clause:
    """The clause with a manner, a place or company from the verb's own list."""
    token = chooser.pick(built.verb.complements)
    modifier = complement(chooser, token, built)
    if modifier is None:
        return add_complement(chooser, built) if "c" in built.verb.flags else built
    return replace(built, modifiers=(*built.modifiers, modifier))


def complement(chooser: Chooser, token: str, built: Clause) -> Modifier | None:
    """What a token of the verb table stands for; none if it does not suit the clause."""
    subject = built.subject.agreement
    is_past = built.tense == "past"
    if token in ADVERBS:
        if token == "together" and not subject.is_many:
            return None
        if token in {"well", "badly"} and built.tense == "infinitive":
            return None
        if token == "badly" and built.negation:
            return None
        return ADVERBS[token]
    if ":" in token:
        return place(chooser, token, subject)
    match token:
        case "with" | "for" | "without":
            other = other_person(chooser, built.subject)
            return Phrase(PREPOSITION_WORDS[token], other)
        case "town":
            return Locality("in", chooser.pick(PLACES))
        case "sender":
            sender = relative(chooser) if chooser.chance(0.7) else person_name(chooser)
            return Phrase(PREPOSITION_WORDS["from"], sender)
        case "origin":
            return Locality("from", chooser.pick(PLACES))
        case "to" | "from":
            return journey(chooser, token)
        case "span" if is_past:
            return duration(chooser, is_far="l" in built.verb.flags)
        case "clock":
            return Figure("at", chooser.number(2, 11))
        case "year" if is_past:
            return Figure("in", chooser.number(1980, 2023))
        case "during":
            key = chooser.pick(noun_keys("film concert lesson meeting match storm trip"))
            return Phrase(PREPOSITION_WORDS["during"], Described(noun=NOUNS[key], determiner="the"))
        case _:
            return None
