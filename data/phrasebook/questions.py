"""Questions, one function for each of their kinds."""

from collections.abc import Callable
from dataclasses import replace

from phrasebook.chooser import Chooser
from phrasebook.clauses import KIND_OF_GROUP, Setting, clause
from phrasebook.linked import ALIKE
from phrasebook.locations import LARGE, SMALL, location
from phrasebook.modifiers import ADVERBS, CONJUNCTION_WORDS, DEGREE_WORDS
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.phrases import (
    HE,
    PERSON,
    SHE,
    THEY,
    WE,
    YOU,
    described,
    kind_of_thing,
    person_name,
    relative,
    somebody,
)
from phrasebook.predicates import BE, mood, the_thing
from phrasebook.predicates import thing as quality_of_thing
from phrasebook.sentences import modal_clause
from phrasebook.syntax import (
    Clause,
    Described,
    Determiner,
    Fixed,
    NounPhrase,
    Pair,
    Pronoun,
    Quality,
    Question,
)
from phrasebook.verbs import INTRANSITIVES, OTHERS, TRANSITIVES
from phrasebook.words import Tense, Verb, names

WHO = Fixed("who", "qui")
PERSONS = (YOU, YOU, YOU, HE, SHE, WE, THEY)
ASKABLE = (*TRANSITIVES, *INTRANSITIVES, OTHERS["live"])


def _named(keys: str) -> tuple[Verb, ...]:
    return tuple(verb for verb in ASKABLE if verb.key in names(keys))


ASKED = {
    "where": _named(
        "live work sleep study eat buy find lose meet play learn hide swim travel go put"
    ),
    "when": _named(
        "leave arrive visit call finish begin buy sell go_out get_up paint build come_back"
    ),
    "why": tuple(verb for verb in ASKABLE if not verb.flags & set("ago")),
    "how": _named("repair open learn make find prepare paint choose build travel"),
    "what": _named(
        "eat drink buy read look_for look_at see draw find prepare choose make give show send"
    ),
    "whom": _named("see call invite meet help wait_for look_for thank listen_to follow"),
}
COUNTABLE = _named("buy eat have see read write repair visit learn invite plant sell")
PLAIN_OBJECT = tuple(
    verb for verb in TRANSITIVES if not verb.preposition and not verb.flags & set("gbn")
)


def asked_person(chooser: Chooser) -> NounPhrase:
    """Whoever one asks about."""
    match chooser.weighted({"pronoun": 11, "name": 3, "kin": 4, "folk": 3}):
        case "pronoun":
            return Pronoun(chooser.pick(PERSONS))
        case "name":
            return person_name(chooser)
        case "kin":
            return relative(chooser, chooser.pick((YOU, HE, SHE)))
        case _:
            return somebody(chooser)


def _clause(
    chooser: Chooser,
    verb: Verb,
    *,
    tense: Tense | None = None,
    object: Described | None = None,
    negation_chance: float = 0,
    may_be_placed: bool = False,
) -> Clause:
    """A clause to ask about, bare of what a question would rather leave open."""
    is_anybody = PERSON.issubset(verb.subjects)
    setting = Setting(
        subject=asked_person(chooser) if is_anybody else None,
        tense=tense or ("past" if "a" in verb.flags else None),
        verb=replace(verb, flags=verb.flags - {"h"}) if may_be_placed else _bare(verb),
        negation_chance=negation_chance,
        is_question=True,
        is_plain=chooser.chance(0.6),
        object=object,
    )
    built = clause(chooser, setting)
    return built if may_be_placed else replace(built, adverb=None)


def whether(chooser: Chooser) -> Question:
    """Do you like coffee?"""
    match chooser.weighted({"any": 9, "mood": 2, "quality": 2, "location": 2, "modal": 3, "or": 2}):
        case "any":
            verb = chooser.pick(TRANSITIVES * 2 + INTRANSITIVES)
            is_anybody = PERSON.issubset(verb.subjects)
            setting = Setting(
                subject=asked_person(chooser) if is_anybody else None,
                verb=replace(verb, flags=verb.flags - {"h"}),
                negation_chance=0,
                is_question=True,
            )
            asked = clause(chooser, setting)
        case "mood":
            asked = mood(chooser)
        case "quality":
            asked = quality_of_thing(chooser)
        case "location":
            asked = location(chooser)
        case "modal":
            asked = modal_clause(chooser)
        case _:
            asked = _alternative(chooser)
    if asked.negation or (isinstance(asked.subject, Fixed) and asked.subject.is_negative):
        return whether(chooser)
    if asked.adverb and asked.adverb.key == "rarely":
        asked = replace(asked, adverb=ADVERBS["often"])
    return Question("whether", asked if asked.verb is BE else _inverted(asked))


def _bare(verb: Verb) -> Verb:
    """The verb without complements; in a question it is plain which tense it is in."""
    return replace(verb, complements=(), flags=verb.flags - {"h", "c"})


def _alternative(chooser: Chooser) -> Clause:
    """Do you prefer tea or coffee?"""
    keys = noun_keys(chooser.pick(ALIKE))
    first = chooser.pick(keys)
    second = chooser.pick([key for key in keys if key != first])
    verb = next(verb for verb in TRANSITIVES if verb.key == "prefer")
    either = Pair(kind_of_thing(first), kind_of_thing(second), CONJUNCTION_WORDS["or"])
    return Clause(subject=asked_person(chooser), verb=verb, object=either)


def where(chooser: Chooser) -> Question:
    """Where are the keys? Where do you live?"""
    if chooser.chance(0.4):
        thing = the_thing(chooser, chooser.pick(SMALL + LARGE))
        who = asked_person(chooser) if chooser.chance(0.4) else thing
        return Question("where", Clause(subject=who, verb=BE))
    return Question("where", _clause(chooser, chooser.pick(ASKED["where"])))


def when(chooser: Chooser) -> Question:
    """When will the train arrive?"""
    tense: Tense = "past" if chooser.chance(0.5) else "future"
    built = _clause(chooser, chooser.pick(ASKED["when"]), tense=tense)
    return Question("when", replace(built, modifiers=(), adverb=None))


def why(chooser: Chooser) -> Question:
    """Why did they not come?"""
    if chooser.chance(0.2):
        asked = mood(chooser)
        if isinstance(asked.subject, Fixed) or not isinstance(asked.predicate, Quality):
            return why(chooser)
        if asked.predicate.degree:
            asked = replace(asked, predicate=replace(asked.predicate, degree=DEGREE_WORDS["so"]))
        return Question("why", _inverted(asked))
    verb = chooser.pick(ASKED["why"])
    return Question(
        "why", _inverted(_clause(chooser, verb, negation_chance=0.3, may_be_placed=True))
    )


def _inverted(asked: Clause) -> Clause:
    """The clause, about you instead of me: French does not turn `je` round."""
    if asked.subject.agreement.label == "I":
        return replace(asked, subject=Pronoun(YOU))
    return asked


def how(chooser: Chooser) -> Question:
    """How did you repair the clock?"""
    tense: Tense = "past" if chooser.chance(0.6) else "future"
    built = _clause(chooser, chooser.pick(ASKED["how"]), tense=tense)
    return Question("how", replace(built, modifiers=(), adverb=None))


def who(chooser: Chooser) -> Question:
    """Who has lost a key?"""
    verb = chooser.pick([one for one in ASKABLE if PERSON.issubset(one.subjects)])
    verb = replace(verb, flags=verb.flags - {"a"})
    setting = Setting(subject=WHO, verb=verb, negation_chance=0.05, is_question=True)
    return Question("who", clause(chooser, setting))


def whom(chooser: Chooser) -> Question:
    """Who did you see?"""
    return Question("whom", replace(_clause(chooser, chooser.pick(ASKED["whom"])), object=None))


def what(chooser: Chooser) -> Question:
    """What are you reading?"""
    return Question("what", replace(_clause(chooser, chooser.pick(ASKED["what"])), object=None))


def which(chooser: Chooser) -> Question:
    """Which song did they sing?"""
    verb = chooser.pick(PLAIN_OBJECT)
    keys = [
        key for key in verb.objects if KIND_OF_GROUP.get(NOUNS[key].group) not in {"kin", "fixed"}
    ]
    keys = [key for key in keys if not NOUNS[key].mass and NOUNS[key].number == "both"]
    if verb.key == "have" or not keys:
        return which(chooser)
    asked = described(chooser, chooser.favor(keys), weights={"which": 1}, adjective_chance=0.1)
    return Question(asked, _clause(chooser, verb, object=asked))


def how_many(chooser: Chooser) -> Question:
    """How many apples did she eat?"""
    verb = chooser.pick(COUNTABLE)
    keys = [key for key in verb.objects if not NOUNS[key].mass and NOUNS[key].number == "both"]
    if not keys:
        return how_many(chooser)
    counted = described(chooser, chooser.favor(keys), weights={"how many": 1})
    return Question(counted, _clause(chooser, verb, object=counted))


def how_old(chooser: Chooser) -> Question:
    """How old is your sister?"""
    return Question("how old", Clause(subject=asked_person(chooser), verb=OTHERS["be old"]))


def how_much(chooser: Chooser) -> Question:
    """How much does this dress cost?"""
    verb = OTHERS["cost"]
    weights: dict[Determiner, int] = {"the": 4, "this": 3, "that": 2, "my": 1}
    subject = described(chooser, chooser.pick(verb.objects), weights=weights)
    return Question("how much", Clause(subject=subject, verb=verb))


QUESTIONS: dict[str, tuple[int, Callable[[Chooser], Question]]] = {
    "whether?": (75, whether),
    "where?": (30, where),
    "when?": (15, when),
    "why?": (25, why),
    "how?": (10, how),
    "who?": (15, who),
    "whom?": (10, whom),
    "what?": (14, what),
    "which?": (12, which),
    "how many?": (12, how_many),
    "how old?": (5, how_old),
    "how much?": (8, how_much),
}
