"""Statements, one function for each of their kinds."""

from collections.abc import Callable
from dataclasses import replace

from phrasebook import linked, pronouns, relatives
from phrasebook.chooser import Chooser
from phrasebook.clauses import ORDINARY_VERBS, Setting, choose_subject, choose_tense, clause
from phrasebook.locations import existence, location
from phrasebook.modifiers import ADVERBS, PLACE_NAMES
from phrasebook.phrases import PERSON, perhaps_not
from phrasebook.predicates import (
    IT,
    age,
    comparison,
    mood,
    opening,
    price,
    profession,
)
from phrasebook.predicates import thing as quality_of_thing
from phrasebook.syntax import Clause, Fixed, Locality, Modifier, Statement
from phrasebook.times import HABITS, add_time, is_time, time
from phrasebook.verbs import CLAUSALS, INTRANSITIVES, MODALS, OTHERS, TRANSITIVES
from phrasebook.words import Tense, names

SKILLS = tuple(
    verb
    for verb in TRANSITIVES + INTRANSITIVES
    if verb.key in names("swim drive play sing dance repair speak read write draw paint translate")
)
# what nobody wants to do, or can
ACCIDENTS = {"lose", "forget", "break", "receive", "fall", "fall asleep", "lie", "cry"}
DOINGS = tuple(
    verb
    for verb in TRANSITIVES * 2 + INTRANSITIVES
    if not verb.flags & set("spno")
    and verb.key not in ACCIDENTS
    and PERSON.intersection(verb.subjects)
)
INTENDED = tuple(verb for verb in DOINGS if "a" not in verb.flags and verb.key != "arrive")
LASTING = tuple(verb for verb in INTENDED if not verb.takes_etre)
LOCATED = OTHERS["live"], OTHERS["come"], OTHERS["put"]


def simple(chooser: Chooser) -> Statement:
    """Marie often eats apples in the kitchen."""
    return opened(chooser, clause(chooser))


def opened(chooser: Chooser, main: Clause) -> Statement:
    """The clause as a statement, its time now and then in front."""
    last = main.modifiers[-1] if main.modifiers else None
    if last and is_time(last) and chooser.chance(0.2):
        return Statement(clause=replace(main, modifiers=main.modifiers[:-1]), opener=last)
    return Statement(clause=main)


def placed(chooser: Chooser) -> Statement:
    """Paul lives in Italy; she put the keys on the table."""
    verb = chooser.pick(LOCATED)
    setting = Setting(verb=verb, just_not=True, is_plain="origin" in verb.complements)
    return opened(chooser, clause(chooser, setting))


def modal(chooser: Chooser) -> Statement:
    """They want to visit the museum tomorrow."""
    return opened(chooser, modal_clause(chooser))


def modal_clause(chooser: Chooser) -> Clause:
    """A verb with an infinitive."""
    weights = dict.fromkeys(MODALS, 2) | {"want": 7, "can": 6, "must": 6}
    verb = MODALS[chooser.weighted(weights)]
    actions = {"know how": SKILLS, "learn": SKILLS, "begin": LASTING, "continue": LASTING}
    actions |= {"forget": INTENDED, "decide": INTENDED}
    action = chooser.pick(actions.get(verb.key, DOINGS))
    tense = choose_tense(chooser, verb)
    doers = tuple(key for key in action.subjects if key in PERSON)
    subject = choose_subject(chooser, replace(action, subjects=doers))
    may_negate = verb.key not in {"hope", "begin", "decide", "continue", "try", "learn"}
    if isinstance(subject, Fixed) or (verb.key == "must" and tense != "present"):
        may_negate = False
    negation = perhaps_not(chooser, 0.2 * may_negate)
    setting = Setting(
        subject=subject,
        tense="infinitive",
        verb=action,
        is_plain=True,
        negation_chance=0,
        is_question=bool(negation),
    )
    built = Clause(
        subject=subject,
        verb=verb,
        tense=tense,
        negation=negation,
        infinitive=clause(chooser, setting),
    )
    inner_has_time = any(is_time(one) for one in inner_modifiers(built))
    if inner_has_time or verb.key in {"know how", "begin", "learn"}:
        return add_time(chooser, built, is_plain=True)
    if verb.key == "like":
        habit = (chooser.pick(HABITS),) if chooser.chance(0.3) else ()
        return replace(built, modifiers=habit)
    if tense == "present" and verb.key in {"want", "can", "must", "hope"}:
        when = (time(chooser, "future", is_far=False),) if chooser.chance(0.25) else ()
        return replace(built, modifiers=when)
    return replace(add_time(chooser, built, is_plain=False), adverb=None)


def inner_modifiers(built: Clause) -> tuple[Modifier, ...]:
    """The modifiers of the infinitive."""
    return built.infinitive.modifiers if built.infinitive else ()


def opinion(chooser: Chooser) -> Statement:
    """She thinks that the film is boring."""
    subject = linked.somebody(chooser)
    is_third = subject.agreement.person == 3
    verb = CLAUSALS[chooser.pick([key for key in CLAUSALS if is_third or key != "say"])]
    if verb.key == "hope":
        verb_hoped = chooser.pick([one for one in ORDINARY_VERBS if not one.flags & set("no")])
        content = clause(chooser, Setting(tense="future", verb=verb_hoped))
    else:
        content = chooser.weighted(
            {
                mood: 3,
                quality_of_thing: 3,
                location: 2,
                profession: 1,
                clause: 4,
                weather: 1,
                comparison: 1,
            }
        )(chooser)
    return Statement(clause=Clause(subject=subject, verb=verb, content=content))


def weather(chooser: Chooser) -> Clause:
    """It will rain in London tomorrow."""
    verb = OTHERS[chooser.pick(("rain", "snow", "be warm"))]
    tense: Tense = chooser.weighted({"present": 4, "past": 4 * (verb.base != "be"), "future": 4})
    where = Locality("in", chooser.pick(tuple(PLACE_NAMES.values())))
    built = Clause(subject=IT, verb=verb, tense=tense, modifiers=(where,) * chooser.chance(0.6))
    if chooser.chance(0.15):
        built = replace(built, negation="not")
    if tense == "present" and verb.base == "be":
        return replace(built, modifiers=(*built.modifiers, ADVERBS[chooser.pick(("now", "today"))]))
    return add_time(chooser, built, is_plain=False)


def plain(make: Callable[[Chooser], Clause]) -> Callable[[Chooser], Statement]:
    """A maker of statements from a maker of clauses."""

    def statement(chooser: Chooser) -> Statement:
        return Statement(clause=make(chooser))

    return statement


STATEMENTS: dict[str, tuple[int, Callable[[Chooser], Statement]]] = {
    "simple": (330, simple),
    "placed": (40, placed),
    "modal": (90, modal),
    "mood": (28, plain(mood)),
    "quality": (44, plain(quality_of_thing)),
    "opening": (6, plain(opening)),
    "comparison": (25, plain(comparison)),
    "profession": (25, plain(profession)),
    "age": (20, plain(age)),
    "price": (15, plain(price)),
    "location": (40, plain(location)),
    "existence": (40, plain(existence)),
    "weather": (18, plain(weather)),
    "opinion": (40, opinion),
    "because": (32, linked.because),
    "because it": (1100, pronouns.because_it),
    "because it, impersonal": (50, pronouns.impersonal),
    "because it, person": (150, pronouns.person_and_it),
    "because they": (50, pronouns.people_and_they),
    "so": (14, linked.consequence),
    "when": (16, linked.when),
    "if": (24, linked.condition),
    "but": (18, linked.but),
    "but it": (16, linked.but_it),
    "follow-up": (72, linked.follow_up),
    "who": (34, relatives.who),
    "that, subject": (25, relatives.of_object),
    "that, object": (25, relatives.with_object),
    "where": (15, relatives.where),
}
