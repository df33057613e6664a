"""Clauses without an ordinary verb: what somebody or something is, how old, how much."""

from dataclasses import replace
from functools import cache

from phrasebook.chooser import Chooser
from phrasebook.modifiers import ADJECTIVES, ADVERBS, DEGREE_WORDS, NUMBERS, adjectives
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.phrases import (
    PEOPLE,
    described,
    perhaps_not,
    person,
    person_name,
    relative,
)
from phrasebook.syntax import (
    Clause,
    Comparison,
    Described,
    Determiner,
    Fixed,
    Modifier,
    NounPhrase,
    Person,
    Pronoun,
    Quality,
    heads,
)
from phrasebook.times import duration, time
from phrasebook.verbs import OTHERS
from phrasebook.words import Adjective, Noun, Number, Tense, names

BE, BECOME = OTHERS["be"], OTHERS["become"]
CHILDREN = {("child",), ("boy",), ("girl",), ("son",), ("daughter",)}
IT = Fixed("it", "il")
MOODS = adjectives(
    "happy tired sick sad tall proud jealous ready nervous curious old young rich poor polite kind"
    " shy brave lazy strong funny famous elegant"
)
GENERATIONS = frozenset(noun_keys("parent aunt uncle son daughter"))
LATER = names("happy sick tired sad proud jealous ready nervous rich poor famous")
EXCESSIVE = names(
    "tired old young shy nervous proud lazy expensive heavy hot cold slow difficult small big long"
    " fat dirty boring dangerous soft light modern quiet curious"
)
PASSING = adjectives("sick tired sad happy")
NEVER_SAID_OF = {"new", "first", "last", "young"}  # not: the car is new, which would be neuf
OPENING_TIMES = ("today", "now", "on Sundays", "on Saturdays", "in winter", "every day")
JOBS = noun_keys("job")
THINGS = noun_keys(
    "vehicle building clothes food drink furniture small_thing readable show study device outdoors"
    " animal room tableware part plant tool instrument event"
)
THE: dict[Determiner, int] = {"the": 7, "this": 3, "that": 2, "my": 3, "owner": 1}
NOT_OWNED: dict[Determiner, int] = {"the": 6, "this": 3, "that": 2}
OWNED = frozenset(noun_keys(
    "vehicle clothes furniture small_thing readable device room instrument pet house garden office"
    " house farm lesson exam idea question"
))  # fmt: skip


@cache
def sayable(noun: str) -> tuple[Adjective, ...]:
    """The adjectives that may be said of a thing or an animal."""
    return tuple(
        adjective
        for adjective in ADJECTIVES.values()
        if noun in adjective.nouns and adjective.key not in NEVER_SAID_OF
    )


def quality(chooser: Chooser, adjective: Adjective) -> Quality:
    """The adjective, perhaps with a word of degree."""
    if adjective.comparative and chooser.chance(0.3):
        degrees = ("very", "very", "so", "too") if adjective.key in EXCESSIVE else ("very", "so")
        return Quality(adjective=adjective, degree=DEGREE_WORDS[chooser.pick(degrees)])
    return Quality(adjective=adjective)


def moods(subject: NounPhrase) -> tuple[Adjective, ...]:
    """The adjectives that may be said of somebody; children are not old."""
    is_child = heads(subject)[:1] in CHILDREN
    return tuple(one for one in MOODS if not (is_child and one.key == "old"))


def mood(chooser: Chooser, subject: NounPhrase | None = None) -> Clause:
    """How somebody is: Marie is very happy."""
    subject = subject or person(chooser)
    is_free = not isinstance(subject, Fixed)
    tense: Tense = chooser.weighted({"present": 78, "past": 10 * is_free, "future": 12})
    if tense == "past":
        when: Modifier = (
            duration(chooser, is_far=False)
            if chooser.chance(0.6)
            else time(chooser, tense, is_far=False)
        )
        predicate = Quality(adjective=chooser.pick(PASSING))
        return Clause(subject=subject, verb=BE, tense=tense, predicate=predicate, modifiers=(when,))
    choices = [one for one in moods(subject) if tense != "future" or one.key in LATER]
    adjective = chooser.favor(choices)
    clause = Clause(
        subject=subject,
        verb=BE,
        tense=tense,
        predicate=quality(chooser, adjective),
        modifiers=(time(chooser, tense, is_far=False),)
        if tense == "future" and chooser.chance(0.4)
        else (),
    )
    if is_free and chooser.chance(0.12):
        return replace(clause, negation="not")
    if tense == "present" and chooser.chance(0.08):
        is_passing = adjective in PASSING
        adverbs = ("always", "often", "sometimes", "also") if is_passing else ("also",)
        return replace(clause, adverb=ADVERBS[chooser.pick(adverbs)])
    return clause


def thing(chooser: Chooser) -> Clause:
    """How something is: the soup is too hot."""
    adjective, key = _property(chooser)
    subject = the_thing(chooser, key, adjective_chance=0)
    return Clause(
        subject=subject,
        verb=BE,
        tense="future"
        if adjective.key in {"open", "closed", "ready"} and chooser.chance(0.2)
        else "present",
        negation=perhaps_not(chooser, 0.14),
        predicate=quality(chooser, adjective),
    )


def opening(chooser: Chooser) -> Clause:
    """The museum is closed on Sundays; the shop will be open tomorrow."""
    adjective = ADJECTIVES[chooser.pick(("open", "closed"))]
    keys = [key for key in adjective.nouns if NOUNS[key].group != "part"]
    tense: Tense = "future" if chooser.chance(0.4) else "present"
    adverbs = ("tomorrow", "tonight", "on Monday") if tense == "future" else OPENING_TIMES
    return Clause(
        subject=described(chooser, chooser.pick(keys), weights=NOT_OWNED),
        verb=BE,
        tense=tense,
        negation=perhaps_not(chooser, 0.15),
        predicate=Quality(adjective=adjective),
        modifiers=(ADVERBS[chooser.pick(adverbs)],),
    )


def _property(chooser: Chooser) -> tuple[Adjective, str]:
    """An adjective and a noun that it may be said of."""
    if chooser.chance(0.35):
        key = chooser.pick([one for one in THINGS if sayable(one)])
        return chooser.pick(sayable(key)), key
    adjective = chooser.pick(tuple(ADJECTIVES.values()))
    keys = [key for key in adjective.nouns if key in THINGS and adjective in sayable(key)]
    return (adjective, chooser.pick(keys)) if keys else _property(chooser)


def the_thing(chooser: Chooser, key: str, *, adjective_chance: float = 0.1) -> Described:
    """A certain thing or animal: this car, my dog."""
    weights = THE if key in OWNED else NOT_OWNED
    plural_chance = 0.7 if NOUNS[key].group in {"fruit", "vegetable", "snack"} else 0.25
    return described(
        chooser,
        key,
        weights=weights,
        adjective_chance=adjective_chance,
        plural_chance=plural_chance,
    )


def comparison(chooser: Chooser) -> Clause:
    """Paul is taller than his brother; the train is faster than the bus."""
    if chooser.chance(0.6):
        choices = [one for one in MOODS if one.comparative and one.key not in {"famous", "elegant"}]
        adjective = chooser.pick(choices)
        subject = person(chooser)
        while isinstance(subject, Fixed):
            subject = person(chooser)
        rival = relative(chooser, subject.agreement, is_single=True)
        while adjective.key in {"old", "young"} and rival.noun.key in GENERATIONS:
            rival = relative(chooser, subject.agreement, is_single=True)
        than: NounPhrase = rival
        if chooser.chance(0.3) and not isinstance(subject, Pronoun):
            than = person_name(chooser)
        if str(than) in str(subject):
            return comparison(chooser)
    else:
        adjective = chooser.pick([one for one in ADJECTIVES.values() if one.comparative])
        keys = [key for key in THINGS if key in adjective.nouns and adjective in sayable(key)]
        groups = [NOUNS[key].group for key in keys]
        keys = [key for key in keys if groups.count(NOUNS[key].group) > 1]
        if not keys:
            return comparison(chooser)
        key = chooser.pick(keys)
        group = NOUNS[key].group
        other = chooser.pick([one for one in keys if NOUNS[one].group == group and one != key])
        subject = described(chooser, key, weights=NOT_OWNED, adjective_chance=0)
        than = described(chooser, other, weights=NOT_OWNED, adjective_chance=0)
    degrees: dict[Comparison, int] = {"more": 7, "less": 2, "as": 3}
    predicate = Quality(adjective=adjective, comparison=chooser.weighted(degrees), than=than)
    negation = perhaps_not(chooser, 0.1)
    return Clause(subject=subject, verb=BE, negation=negation, predicate=predicate)


def profession(chooser: Chooser) -> Clause:
    """My sister is a nurse; they will become lawyers."""
    subject = person(chooser)
    while isinstance(subject, Fixed) or (
        isinstance(subject, Described) and subject.noun.key in PEOPLE
    ):
        subject = person(chooser)
    is_many = subject.agreement.is_many
    job = NOUNS[chooser.pick(JOBS)]
    predicate = Described(noun=job, determiner="bare" if is_many else "a", is_plural=is_many)
    if chooser.chance(0.6):
        negation = perhaps_not(chooser, 0.2)
        return Clause(subject=subject, verb=BE, negation=negation, predicate=predicate)
    tense: Tense = "past" if chooser.chance(0.5) else "future"
    when = (time(chooser, tense, is_far=True, is_near=False),) if chooser.chance(0.5) else ()
    return Clause(subject=subject, verb=BECOME, tense=tense, predicate=predicate, modifiers=when)


def age(chooser: Chooser) -> Clause:
    """Emma is twelve years old."""
    subject = person(chooser)
    while isinstance(subject, Fixed):
        subject = person(chooser)
    numbers = tuple(NUMBERS.values())
    numbers = numbers[1:16] if heads(subject)[:1] in CHILDREN else numbers[18:]
    if isinstance(subject, Pronoun | Person):
        numbers = tuple(NUMBERS.values())[4:]
    years = amount(chooser, NOUNS["year"], numbers)
    tense: Tense = "future" if chooser.chance(0.15) else "present"
    when = (
        (time(chooser, tense, is_far=True, is_near=False),)
        if tense == "future" and chooser.chance(0.5)
        else ()
    )
    negation = perhaps_not(chooser, 0.08 * (tense == "present"))
    return Clause(
        subject=subject,
        verb=OTHERS["be old"],
        tense=tense,
        negation=negation,
        object=years,
        modifiers=when,
    )


def amount(chooser: Chooser, unit: Noun, numbers: tuple[Number, ...]) -> Described:
    """So many years, so many euros."""
    return Described(noun=unit, determiner="number", is_plural=True, number=chooser.pick(numbers))


def price(chooser: Chooser) -> Clause:
    """This dress costs forty euros, or 45 euros."""
    key = chooser.pick(OTHERS["cost"].objects)
    subject = the_thing(chooser, key)
    figure = str(chooser.number(21, 99))
    numbers = tuple(NUMBERS.values())[1:]
    if NOUNS[key].group in {"device", "furniture", "instrument", "vehicle"}:
        figure = f"{chooser.number(10, 95)}0"
        numbers = (Number(figure, figure),)
    elif chooser.chance(0.4):
        numbers = (Number(figure, figure),)
    return Clause(
        subject=subject, verb=OTHERS["cost"], object=amount(chooser, NOUNS["euro"], numbers)
    )
