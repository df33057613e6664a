"""Clauses with one verb drawn at random: subject, tense, object, place and time that fit it."""

from dataclasses import dataclass, replace

from phrasebook.chooser import Chooser
from phrasebook.complements import add_complement, add_recipient, season
from phrasebook.modifiers import (
    CONJUNCTION_WORDS,
)
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.phrases import (
    EVERYBODY,
    NOBODY,
    PERSON,
    RELATIVES,
    container,
    described,
    kind_of_thing,
    other_person,
    other_pronoun,
    person,
)
from phrasebook.syntax import (
    Clause,
    Described,
    Determiner,
    Negation,
    NounPhrase,
    Pair,
)
from phrasebook.times import add_time
from phrasebook.verbs import INTRANSITIVES, TRANSITIVES
from phrasebook.words import Tense, Verb

ORDINARY_VERBS = TRANSITIVES * 2 + INTRANSITIVES
EDIBLE = frozenset(noun_keys("food drink ingredient"))
BOARDED = frozenset(noun_keys("boarded car"))
PAIRED = {"shoe", "glove"}
THING: dict[Determiner, int] = {
    "the": 8, "a": 7, "my": 8, "this": 3, "that": 2, "number": 3, "some": 1, "a lot of": 1,
    "owner": 2,
}  # fmt: skip
DETERMINERS: dict[str, dict[Determiner, int]] = {
    "food": {"bare": 8, "some": 7, "the": 4, "a": 5, "number": 5, "a lot of": 3, "this": 1},
    "person": {"the": 9, "a": 1, "this": 2, "that": 2, "number": 1},
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
    is_plain: bool = False  # without time
    negation_chance: float = 0.17
    is_question: bool = False
    is_bare: bool = False  # without a complement that could be missing
    just_not: bool = False  # negation without never and no longer
    objects: tuple[str, ...] = ()
    object: NounPhrase | None = None


def clause(chooser: Chooser, setting: Setting = Setting()) -> Clause:
    """A clause about a verb, drawn at random if the setting names none."""
    verb = setting.verb or chooser.pick(ORDINARY_VERBS)
    tense = setting.tense or choose_tense(chooser, verb)
    subject = setting.subject or choose_subject(chooser, verb)
    is_counted = isinstance(subject, Described) and subject.determiner in {"every", "number"}
    if is_counted or subject in {EVERYBODY, NOBODY}:
        setting = replace(setting, negation_chance=0)
    negation = choose_negation(chooser, tense, setting)
    built = Clause(subject=subject, verb=verb, tense=tense, negation=negation)
    if setting.object:
        built = replace(built, object=setting.object)
    elif verb.objects:
        built = replace(built, object=choose_object(chooser, built, setting))
    if not setting.is_question:
        built = season(chooser, built)
    if "t" in verb.flags or ("r" in verb.flags and chooser.chance(0.6)):
        built = add_recipient(chooser, built)
    needs_one = "c" in verb.flags
    if verb.complements and (needs_one or (not setting.is_bare and chooser.chance(0.6))):
        built = add_complement(chooser, built)
    return add_time(chooser, built, is_plain=setting.is_plain)


def choose_tense(chooser: Chooser, verb: Verb) -> Tense:
    """A tense that makes sense with the verb."""
    if "n" in verb.flags:
        return "present"
    if "o" in verb.flags:
        return "past"
    present = 0 if "f" in verb.flags else 43
    past = 0 if "p" in verb.flags else 33
    future = 0 if "x" in verb.flags else 24
    return chooser.weighted({"present": present, "past": past, "future": future})


def choose_subject(chooser: Chooser, verb: Verb) -> NounPhrase:
    """Whoever or whatever can do it."""
    others = tuple(key for key in verb.subjects if key not in PERSON)
    is_anybody = len(verb.subjects) - len(others) == len(PERSON)
    if is_anybody and not (others and chooser.chance(0.25)):
        return person(chooser)
    key = chooser.favor(others if is_anybody else verb.subjects)
    if key in RELATIVES:
        return described(chooser, key, weights={"my": 1}, adjective_chance=0)
    weights: dict[Determiner, int] = {"the": 7, "this": 2, "that": 1, "number": 2}
    if NOUNS[key].group in {"pet", "vehicle"}:
        weights |= {"my": 4, "owner": 1}
    return described(chooser, key, weights=weights)


def choose_negation(chooser: Chooser, tense: Tense, setting: Setting) -> Negation:
    """Mostly none."""
    if not chooser.chance(setting.negation_chance):
        return ""
    if setting.is_question or setting.just_not:
        return "not"
    return chooser.weighted({"not": 70, "never": 18, "no longer": 0 if tense == "past" else 12})


def choose_object(chooser: Chooser, built: Clause, setting: Setting) -> NounPhrase:
    """Something that the verb can be done to."""
    verb = built.verb
    keys = setting.objects or verb.objects
    has_people = PERSON.intersection(keys) and "w" not in verb.flags and verb.key != "have"
    if has_people and chooser.chance(0.3 if "g" not in verb.flags else 0):
        return (
            other_person(chooser, built.subject)
            if chooser.chance(0.3)
            else other_pronoun(chooser, built.subject)
        )
    if verb.key in {"drink", "buy", "bring"} and not built.negation and chooser.chance(0.2):
        vessel = container(chooser, keys)
        if vessel:
            return vessel
    key = chooser.favor(keys)
    first = thing(chooser, key, built, setting)
    others = [one for one in keys if one in EDIBLE and one != key]
    may_pair = key in EDIBLE and not built.negation and verb.preposition == ""
    if may_pair and others and chooser.chance(0.08):
        second = thing(chooser, chooser.pick(others), built, setting)
        return Pair(first, second, CONJUNCTION_WORDS["and"])
    return first


def thing(chooser: Chooser, key: str, built: Clause, setting: Setting) -> Described:
    """The object: a noun with a determiner that suits it, the verb and the negation."""
    noun, verb = NOUNS[key], built.verb
    subject = built.subject.agreement
    if "g" in verb.flags and not (NOUNS[key].group == "animal" and chooser.chance(0.3)):
        return kind_of_thing(key)
    if "b" in verb.flags:
        return Described(noun=noun, determiner="bare")
    kind = KIND_OF_GROUP.get(noun.group, "thing")
    if noun.group == "instrument" and verb.preposition:
        return described(
            chooser, key, weights={"the": 5, "my": 1}, possessor=subject, plural_chance=0
        )
    weights = dict(DETERMINERS.get(kind, THING))
    if "a" in verb.flags and built.tense == "present" and kind == "thing":
        weights = {"the": 3, "my": 6, "a": 1}
    if noun.group == "vehicle" and verb.key in {"take", "get on", "get off", "wait for"}:
        weights = {"the": 6, "a": 3, "this": 2}
    if verb.key in {"have", "need"}:
        weights = {"a": 9, "number": 2, "bare": 4 * noun.mass, "some": 4 * noun.mass}
        weights = weights if noun.group != "language" else {"generic": 1}
    if verb.key in {"like", "love"}:
        weights = {"the": 6, "this": 2, "that": 2}
    if built.negation or setting.is_question or (setting.is_bare and kind != "food"):
        weights = _without_amounts(weights)
    if verb.preposition == "dans" or verb.key in {"enter", "cross"}:
        weights = {"the": 6, "this": 2, "that": 1}
    possessor = subject if chooser.chance(0.85) else None
    plural_chance = 0.06 if kind in {"place", "event"} or key in BOARDED else 0.3
    if verb.key == "wear":
        weights = {"the": 4, "a": 5 * (key not in PAIRED), "my": 6, "this": 2, "that": 1}
        plural_chance = float(key in PAIRED)
    return described(
        chooser,
        key,
        weights=weights,
        possessor=possessor,
        plural_chance=plural_chance,
        adjective_chance=0 if verb.key in {"break", "need"} else 0.31,
    )


def _without_amounts(weights: dict[Determiner, int]) -> dict[Determiner, int]:
    """The weights of a negated clause or a question: no `some`, no numbers."""
    kept = {
        one: weight for one, weight in weights.items() if one not in {"some", "number", "a lot of"}
    }
    if "bare" in kept:
        kept["bare"] += 6
    return kept
