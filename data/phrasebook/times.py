"""When something happens: adverbials of time, and the English aspect that goes with them."""

from dataclasses import replace

from phrasebook.chooser import Chooser
from phrasebook.modifiers import ADVERBS, NUMBERS, PREPOSITION_WORDS
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.syntax import Clause, Described, Figure, Fixed, Modifier, Phrase, Span
from phrasebook.words import Adverb, Tense

FREQUENT = tuple(ADVERBS[key] for key in ("often", "always", "sometimes", "rarely"))
TIMES = tuple(adverb for adverb in ADVERBS.values() if adverb.position == "time")
HABITS = tuple(adverb for adverb in TIMES if adverb.is_habit)
SPAN_NUMBERS = tuple(NUMBERS.values())[:9]
UNITS = tuple(NOUNS[key] for key in ("hour", "day", "week", "month", "year"))
OCCASIONS = noun_keys("meal concert lesson meeting film match")


def is_time(modifier: Modifier) -> bool:
    """Whether it says when, so that another one would be too many."""
    if isinstance(modifier, Adverb):
        return modifier.position == "time"
    return isinstance(modifier, Figure | Span)


def time(chooser: Chooser, tense: Tense) -> Modifier:
    """Some time in the past or in the future."""
    kind = chooser.weighted({"adverb": 78, "span": 13, "occasion": 9})
    if kind == "adverb":
        return chooser.pick([one for one in TIMES if tense in one.times and not one.is_habit])
    if kind == "span":
        return Span("ago" if tense == "past" else "in", *_amount(chooser))
    key = chooser.pick(OCCASIONS)
    determiner = "generic" if NOUNS[key].group == "meal" else "the"
    preposition = PREPOSITION_WORDS[chooser.pick(("after", "before"))]
    return Phrase(preposition, Described(noun=NOUNS[key], determiner=determiner))


def duration(chooser: Chooser) -> Span:
    """For so long."""
    return Span("for", *_amount(chooser))


def _amount(chooser: Chooser):
    return chooser.favour(SPAN_NUMBERS), chooser.pick(UNITS)


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
    must_tell = "h" in built.verb.flags and built.tense == "past"
    if not has_time and (must_tell or (not is_plain and chooser.chance(0.4))):
        return _with(built, time(chooser, built.tense))
    if has_time or is_plain or built.negation or isinstance(built.subject, Fixed):
        return built
    if chooser.chance(0.05):
        return replace(built, adverb=ADVERBS["also"])
    if built.tense == "past" and chooser.chance(0.08):
        return replace(built, adverb=ADVERBS["already"])
    return built


def _with(built: Clause, modifier: Modifier) -> Clause:
    return replace(built, modifiers=(*built.modifiers, modifier))


def _present(chooser: Chooser, built: Clause, *, is_plain: bool, has_time: bool) -> Clause:
    flags = built.verb.flags
    if "a" in flags:  # he often loses his keys, but not: he is losing his keys
        built = replace(built, negation="")
        if has_time or chooser.chance(0.65):
            return replace(built, adverb=chooser.pick(FREQUENT))
        return _with(built, chooser.pick(HABITS))
    if "s" in flags:
        if not is_plain and not built.negation and chooser.chance(0.08):
            return replace(built, adverb=chooser.pick((*FREQUENT, ADVERBS["also"])))
        return built
    if "h" in flags:
        return replace(built, is_progressive=True)
    if has_time:
        return built
    kind = chooser.weighted({"now": 50, "often": 18, "every day": 14, "timeless": 18})
    if kind == "now":
        built = replace(built, is_progressive=True)
        is_dated = not is_plain and chooser.chance(0.2)
        return _with(built, ADVERBS[chooser.pick(("now", "today"))]) if is_dated else built
    if is_plain or kind == "timeless":
        return built
    if kind == "often":
        choices = FREQUENT[:2] if built.negation else (*FREQUENT, ADVERBS["also"])
        return replace(built, adverb=chooser.pick(choices))
    return _with(built, chooser.pick(HABITS))
