"""Clauses with one verb drawn at random: subject, tense, object, place and time that fit it."""

from dataclasses import dataclass, replace

from phrasebook.chooser import Chooser
from phrasebook.modifiers import (
    ADVERBS,
    CONJUNCTION_WORDS,
    NUMBERS,
    PLACE_NAMES,
    PREPOSITION_WORDS,
)
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.phrases import (
    EVERYBODY,
    PERSON,
    RELATIVES,
    container,
    described,
    journey,
    other_person,
    other_pronoun,
    own,
    person,
    place,
    relative,
)
from phrasebook.syntax import (
    Clause,
    Described,
    Determiner,
    Figure,
    Fixed,
    Locality,
    Modifier,
    Negation,
    NounPhrase,
    Pair,
    Phrase,
    Pronoun,
    Span,
)
from phrasebook.times import add_time, span
from phrasebook.verbs import INTRANSITIVES, TRANSITIVES
from phrasebook.words import Adverb, Noun, Tense, Verb

ALL_VERBS = TRANSITIVES * 2 + INTRANSITIVES
PLACES = tuple(PLACE_NAMES.values())
NEGATED = {"a": "the", "number": "the", "some": "bare", "a lot of": "bare"}
EDIBLE = frozenset(noun_keys("food drink ingredient"))
THING: dict[Determiner, int] = {
    "the": 8, "a": 7, "my": 8, "this": 3, "that": 2, "number": 3, "some": 1, "a lot of": 1,
    "owner": 2,
}  # fmt: skip
DETERMINERS: dict[str, dict[Determiner, int]] = {
    "food": {"bare": 8, "some": 7, "the": 4, "a": 5, "number": 5, "a lot of": 3, "this": 1},
    "person": {"the": 7, "a": 2, "this": 2, "that": 2, "number": 1},
    "kin": {"my": 9, "owner": 1},
    "place": {"the": 8, "this": 2, "that": 2, "a": 2},
    "fixed": {"generic": 1},
    "animal": {"the": 7, "a": 3, "this": 2, "that": 1, "number": 3, "some": 1, "owner": 1},
    "event": {"the": 7, "this": 2, "that": 1, "a": 1},
}
KINDS = {
    "food": "fruit vegetable snack staple ingredient dish drink",
    "person": "folk job baby",
    "kin": "parent kin",
    "place": "building room outdoors part",
    "fixed": "meal language sport",
    "animal": "farm_animal wild_animal",
    "event": "event show study thought",
}
KIND_OF_GROUP = {group: kind for kind, groups in KINDS.items() for group in groups.split()}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a clause is to be like, where that is not left to chance."""

    subject: NounPhrase | None = None
    tense: Tense | None = None
    verb: Verb | None = None
    is_plain: bool = False  # affirmative, without time
    negation_chance: float = 0.17
    is_question: bool = False
    objects: tuple[str, ...] = ()


def clause(chooser: Chooser, setting: Setting = Setting()) -> Clause:  # noqa: B008 (frozen)
    """A clause about a verb, drawn at random if the setting names none."""
    verb = setting.verb or chooser.pick(ALL_VERBS)
    tense = setting.tense or choose_tense(chooser, verb)
    subject = setting.subject or choose_subject(chooser, verb)
    if isinstance(subject, Fixed) and subject.is_negative:
        setting = replace(setting, negation_chance=0)
    negation = choose_negation(chooser, tense, setting)
    built = Clause(subject=subject, verb=verb, tense=tense, negation=negation)
    if verb.objects:
        built = replace(built, object=choose_object(chooser, built, setting))
    if "r" in verb.flags and chooser.chance(0.7):
        built = add_recipient(chooser, built)
    needs_one = "c" in verb.flags
    if verb.complements and (needs_one or chooser.chance(0.4)):
        built = add_complement(chooser, built)
    return add_time(chooser, built, is_plain=setting.is_plain)


def choose_tense(chooser: Chooser, verb: Verb) -> Tense:
    """A tense that makes sense with the verb."""
    if "n" in verb.flags:
        return "present"
    if "o" in verb.flags:
        return "past"
    past = 0 if "p" in verb.flags else 33
    return chooser.weighted({"present": 43, "past": past, "future": 24})


def choose_subject(chooser: Chooser, verb: Verb) -> NounPhrase:
    """Whoever or whatever can do it."""
    others = tuple(key for key in verb.subjects if key not in PERSON)
    is_anybody = len(verb.subjects) - len(others) == len(PERSON)
    if is_anybody and not (others and chooser.chance(0.25)):
        return person(chooser)
    key = chooser.favour(others if is_anybody else verb.subjects)
    if key in RELATIVES:
        return described(chooser, key, weights={"my": 1}, adjective_chance=0)
    weights: dict[Determiner, int] = {"the": 7, "this": 2, "that": 1, "number": 2}
    if NOUNS[key].group in {"pet", "vehicle"}:
        weights |= {"my": 4, "owner": 1}
    return described(chooser, key, weights=weights)


def choose_negation(chooser: Chooser, tense: Tense, setting: Setting) -> Negation:
    """Mostly none."""
    if setting.is_plain or not chooser.chance(setting.negation_chance):
        return ""
    if setting.is_question:
        return "not"
    return chooser.weighted({"not": 70, "never": 18, "no longer": 0 if tense == "past" else 12})


def choose_object(chooser: Chooser, built: Clause, setting: Setting) -> NounPhrase:
    """Something that the verb can be done to."""
    verb = built.verb
    keys = setting.objects or verb.objects
    has_people = PERSON.intersection(keys) and "w" not in verb.flags and verb.key != "have"
    if has_people and chooser.chance(0.3 if "g" not in verb.flags else 0):
        return other_person(chooser, built.subject) if chooser.chance(0.3) else other_pronoun(
            chooser, built.subject
        )
    if verb.key in {"drink", "order", "buy", "bring"} and not built.negation and chooser.chance(0.2):
        vessel = container(chooser, keys)
        if vessel:
            return vessel
    key = chooser.favour(keys)
    first = thing(chooser, key, built, setting)
    if key in EDIBLE and not built.negation and verb.preposition == "" and chooser.chance(0.08):
        other = chooser.pick([one for one in keys if one in EDIBLE and one != key])
        second = thing(chooser, other, built, setting)
        return Pair(first, second, CONJUNCTION_WORDS["and"])
    return first


def thing(chooser: Chooser, key: str, built: Clause, setting: Setting) -> Described:
    """The object: a noun with a determiner that suits it, the verb and the negation."""
    noun, verb = NOUNS[key], built.verb
    subject = built.subject.agreement
    if "g" in verb.flags and not (NOUNS[key].group == "animal" and chooser.chance(0.3)):
        return Described(noun=noun, determiner="generic", is_plural=_is_countable(noun))
    if "b" in verb.flags:
        return Described(noun=noun, determiner="bare")
    kind = KIND_OF_GROUP.get(noun.group, "thing")
    if noun.group == "instrument" and verb.preposition:
        return described(chooser, key, weights={"the": 5, "my": 1}, possessor=subject)
    weights = dict(DETERMINERS.get(kind, THING))
    if verb.key in {"have", "need"}:
        weights = {"a": 9, "number": 3, "bare": 4 * noun.mass, "some": 4 * noun.mass}
        weights = weights if noun.group != "language" else {"generic": 1}
    if built.negation or setting.is_question:
        weights = _without_amounts(weights)
    if verb.preposition == "dans" or verb.key in {"enter", "cross"}:
        weights = {"the": 6, "this": 2, "that": 1}
    possessor = subject if chooser.chance(0.85) else None
    return described(chooser, key, weights=weights, possessor=possessor)


def _without_amounts(weights: dict[Determiner, int]) -> dict[Determiner, int]:
    """The weights of a negated clause or a question: no `some`, no numbers."""
    kept = {one: weight for one, weight in weights.items() if one not in {"some", "number", "a lot of"}}
    if "bare" in kept:
        kept["bare"] += 6
    return kept


def _is_countable(noun: Noun) -> bool:
    return not noun.mass and noun.number != "singular"


def add_recipient(chooser: Chooser, built: Clause) -> Clause:
    """The clause with somebody whom the thing is given to, read to …"""
    recipient = other_person(chooser, built.subject)
    can_be_first = built.verb.key != "explain"
    is_first = can_be_first and (isinstance(recipient, Pronoun) or chooser.chance(0.3))
    return replace(built, recipient=recipient, recipient_is_first=is_first)


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
        return ADVERBS[token]
    if ":" in token:
        return place(chooser, token, subject)
    match token:
        case "with" | "for":
            other = other_person(chooser, built.subject)
            return Phrase(PREPOSITION_WORDS[token], other)
        case "town":
            return Locality("in", chooser.favour(PLACES))
        case "to" | "from":
            return journey(chooser, token)
        case "span" if is_past:
            return span(chooser, "for")
        case "clock":
            return Figure("at", chooser.number(2, 11))
        case "year" if is_past:
            return Figure("in", chooser.number(1980, 2023))
        case "during":
            key = chooser.pick(noun_keys("film concert lesson meeting match storm trip"))
            return Phrase(PREPOSITION_WORDS["during"], Described(noun=NOUNS[key], determiner="the"))
        case _:
            return None
