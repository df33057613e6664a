"""When something happens: adverbials of time, and the English aspect that goes with them."""

from dataclasses import replace
from typing import Literal, TypedDict

from phrasebook.chooser import Chooser
from phrasebook.modifiers import ADVERBS, NUMBERS, PREPOSITION_WORDS
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.syntax import Clause, Described, Determiner, Figure, Fixed, Modifier, Phrase, Span
from phrasebook.words import Adverb, Tense, names

FREQUENT = tuple(ADVERBS[key] for key in ("often", "always", "sometimes", "rarely"))
TIMES = tuple(adverb for adverb in ADVERBS.values() if adverb.position == "time")
HABITS = tuple(adverb for adverb in TIMES if adverb.is_habit)
SPAN_NUMBERS = tuple(NUMBERS.values())[:9]
FAR = frozenset(
    ADVERBS[key]
    for key in names(
        "last_week last_year last_summer last_month next_week next_year next_month in_January"
        " in_April in_August in_October"
    )
)
NEAR_UNITS = {NOUNS["hour"]: 4, NOUNS["day"]: 5, NOUNS["week"]: 1}
FAR_UNITS = {NOUNS["day"]: 1, NOUNS["week"]: 4, NOUNS["month"]: 4, NOUNS["year"]: 3}


class Distance(TypedDict):
    """How far away in time."""

    is_far: bool
    is_near: bool


OCCASIONS = noun_keys("meal concert lesson meeting film match")


def is_time(modifier: Modifier) -> bool:
    """Whether it says when, so that another one would be too many."""
    if isinstance(modifier, Adverb):
        return modifier.position == "time"
    return isinstance(modifier, Figure | Span)


def time(chooser: Chooser, tense: Tense, *, is_far: bool, is_near: bool = True) -> Modifier:
    """Some time in the past or in the future: hours or days away, weeks or years, or either."""
    kind = chooser.weighted({"adverb": 78, "span": 13, "occasion": 9 * is_near})
    if kind == "adverb":
        choices = [one for one in TIMES if tense in one.times and not one.is_habit]
        return chooser.pick([one for one in choices if (is_far if one in FAR else is_near)])
    if kind == "span":
        units = FAR_UNITS if is_far else NEAR_UNITS
        relation: Literal["ago", "in"] = "ago" if tense == "past" else "in"
        return Span(relation, chooser.favor(SPAN_NUMBERS), chooser.weighted(units))
    key = chooser.pick(OCCASIONS)
    determiner: Determiner = "generic" if NOUNS[key].group == "meal" else "the"
    preposition = PREPOSITION_WORDS[chooser.pick(("after", "before"))]
    return Phrase(preposition, Described(noun=NOUNS[key], determiner=determiner))


def duration(chooser: Chooser, *, is_far: bool) -> Span:
    """For so long; weeks and years only if `is_far`."""
    return Span(
        "for", chooser.favor(SPAN_NUMBERS), chooser.weighted(FAR_UNITS if is_far else NEAR_UNITS)
    )


def add_time(chooser: Chooser, built: Clause, *, is_plain: bool) -> Clause:
    """The clause with its time, its aspect and its adverb, as far as they agree.

    Args:
        chooser: where the choices come from.
        built: a clause without them.
        is_plain: whether to leave out what need not be there.
    """
    if built.negation in {"never", "no longer"}:
        return built
    has_time = any(is_time(modifier) for modifier in built.modifiers)
    if built.tense == "present":
        return _present(chooser, built, is_plain=is_plain, has_time=has_time)
    if {"s", "f"} <= built.verb.flags:  # he loved the film
        return built
    has_time = has_time or any(
        one in (ADVERBS["early"], ADVERBS["late"]) for one in built.modifiers
    )
    must_tell = "h" in built.verb.flags and built.tense == "past"
    if not has_time and (must_tell or (not is_plain and chooser.chance(0.5))):
        if built.verb.french_tail and built.tense == "future":  # he will soon be hungry
            return _with(built, ADVERBS[chooser.pick(("soon", "tonight", "tomorrow"))])
        return _with(built, time(chooser, built.tense, **distance(built)))
    has_manner = any(isinstance(one, Adverb) for one in built.modifiers)
    if has_time or has_manner or is_plain or built.negation or isinstance(built.subject, Fixed):
        return built
    if chooser.chance(0.05):
        return replace(built, adverb=ADVERBS["also"])
    if built.tense == "past" and chooser.chance(0.08):
        return replace(built, adverb=ADVERBS["already"])
    return built


def distance(built: Clause) -> Distance:
    """Whether what the clause says may be weeks or years away, and whether hours or days."""
    flags = (built.infinitive or built).verb.flags
    return {"is_far": "l" in flags, "is_near": "d" not in flags}


def _with(built: Clause, modifier: Modifier) -> Clause:
    return replace(built, modifiers=(*built.modifiers, modifier))


def _present(chooser: Chooser, built: Clause, *, is_plain: bool, has_time: bool) -> Clause:
    flags = built.verb.flags
    is_fixed = isinstance(built.subject, Fixed)  # not: nobody always wins
    if "a" in flags:  # he often loses his keys, but not: he is losing his keys
        built = replace(built, negation="")
        if has_time or (not is_fixed and chooser.chance(0.65)):
            return replace(built, adverb=chooser.pick(FREQUENT))
        return _with(built, chooser.pick(HABITS))
    if "s" in flags:
        if not is_plain and not built.negation and not is_fixed and chooser.chance(0.08):
            choices = () if flags & {"n", "d"} else FREQUENT  # not: he often lives in Rome
            return replace(built, adverb=chooser.pick((*choices, ADVERBS["also"])))
        return built
    if "h" in flags:
        return replace(built, is_progressive=True)
    if has_time:
        return built
    kind = chooser.weighted({"now": 54, "often": 18, "every day": 16, "timeless": 12})
    if kind == "now":
        built = replace(built, is_progressive=True)
        is_dated = not is_plain and chooser.chance(0.2)
        return _with(built, ADVERBS[chooser.pick(("now", "today"))]) if is_dated else built
    if is_plain or kind == "timeless" or (is_fixed and kind == "often"):
        return built
    if kind == "often":
        has_manner = any(isinstance(one, Adverb) for one in built.modifiers)
        choices = FREQUENT[:2] if built.negation else FREQUENT
        if not built.negation and not has_manner:
            choices = (*choices, ADVERBS["also"])
        return replace(built, adverb=chooser.pick(choices))
    return _with(built, chooser.pick(HABITS))
