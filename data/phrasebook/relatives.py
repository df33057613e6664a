"""Statements with a relative clause: the man who, the book that, the city where."""

from dataclasses import replace
from functools import cache

from phrasebook.chooser import Chooser
from phrasebook.clauses import Setting, clause
from phrasebook.linked import somebody
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.phrases import described, perhaps_not
from phrasebook.predicates import BE, moods, quality, sayable
from phrasebook.syntax import Clause, Described, Relative, Statement
from phrasebook.verbs import INTRANSITIVES, OTHERS, TRANSITIVES
from phrasebook.words import Verb, names

KINSHIP = {
    "man": "uncle brother father friend neighbor boss teacher doctor",
    "woman": "aunt sister mother",
    "boy": "son brother friend",
    "girl": "daughter sister",
}
STAYS = {
    "live": "city village castle house",
    "work": "hotel hospital library bank restaurant office factory museum",
    "sleep": "bedroom hotel house",
    "eat": "restaurant hotel kitchen",
    "study": "university library school city",
    "stay": "hotel village hospital house",
    "play": "park garden street",
    "swim": "lake river",
    "dance": "restaurant hotel castle",
}
EXCLUDED = frozenset(noun_keys("parent sister brother aunt uncle daughter son language sport"))
HEADS = tuple(key for key in NOUNS if key not in EXCLUDED)
LOCAL_VERBS = {verb.key: verb for verb in (*INTRANSITIVES, OTHERS["live"])}
PROPERTIES = names("big small old beautiful modern quiet comfortable pretty expensive")


@cache
def done_to(noun: str) -> tuple[Verb, ...]:
    """The verbs that have the noun as a plain direct object."""
    return tuple(
        verb
        for verb in TRANSITIVES
        if noun in verb.objects
        and not verb.preposition
        and not verb.flags & set("gb")
        and verb.key != "have"
    )


def who(chooser: Chooser) -> Statement:
    """The woman who lives in Rome is my aunt."""
    key = chooser.pick((*KINSHIP, "child", *noun_keys("job")))
    head = described(chooser, key, weights={"the": 5, "that": 1}, adjective_chance=0.15)
    inner = _plain(chooser, head)
    antecedent = replace(head, relative=Relative("subject", inner))
    if key in KINSHIP and not head.is_plural and chooser.chance(0.5):
        kin = chooser.pick(KINSHIP[key].split())
        predicate = described(chooser, kin, weights={"my": 1}, adjective_chance=0)
        predicate = replace(predicate, is_plural=False)
        return Statement(clause=Clause(subject=antecedent, verb=BE, predicate=predicate))
    return Statement(clause=_being(chooser, antecedent))


def _plain(chooser: Chooser, head: Described) -> Clause:
    """A short clause about the antecedent."""
    while True:
        others = TRANSITIVES + INTRANSITIVES
        verb = OTHERS["live"] if chooser.chance(0.3) else chooser.pick(others)
        if head.noun.key not in verb.subjects or "o" in verb.flags:
            continue
        return clause(
            chooser, Setting(subject=head, verb=verb, is_plain=True, negation_chance=0.08)
        )


def _being(chooser: Chooser, subject: Described) -> Clause:
    """How somebody is."""
    taken = {adjective.key for adjective in subject.adjectives}
    adjective = chooser.pick([one for one in moods(subject) if one.key not in taken])
    negation = perhaps_not(chooser, 0.1)
    return Clause(
        subject=subject, verb=BE, negation=negation, predicate=quality(chooser, adjective)
    )


def of_object(chooser: Chooser) -> Statement:
    """The book that Paul is reading is interesting."""
    key = chooser.pick([key for key in HEADS if sayable(key) and done_to(key)])
    head = described(chooser, key, weights={"the": 1}, adjective_chance=0)
    antecedent = replace(head, relative=Relative("object", doing(chooser, head)))
    predicate = quality(chooser, chooser.pick(sayable(key)))
    negation = perhaps_not(chooser, 0.1)
    main = Clause(subject=antecedent, verb=BE, negation=negation, predicate=predicate)
    return Statement(clause=main)


def doing(chooser: Chooser, head: Described, taken: Verb | None = None) -> Clause:
    """What somebody does to the antecedent."""
    verb = chooser.pick([one for one in done_to(head.noun.key) if one != taken])
    setting = Setting(
        subject=somebody(chooser),
        verb=verb,
        object=head,
        negation_chance=0,
        is_plain=chooser.chance(0.6),
    )
    built = clause(chooser, setting)
    return replace(built, adverb=None) if built.adverb and built.adverb.key == "also" else built


def with_object(chooser: Chooser) -> Statement:
    """She is wearing the dress that she bought yesterday."""
    key = chooser.pick([key for key in HEADS if len(done_to(key)) > 2])
    verb = chooser.pick(done_to(key))
    head = described(chooser, key, weights={"the": 1}, adjective_chance=0.1)
    setting = Setting(
        subject=somebody(chooser), verb=verb, object=head, negation_chance=0.1, is_plain=True
    )
    main = clause(chooser, setting)
    if "n" in verb.flags or main.modifiers or main.recipient:
        return with_object(chooser)
    inner = doing(chooser, head, verb)
    return Statement(clause=replace(main, object=replace(head, relative=Relative("object", inner))))


def where(chooser: Chooser) -> Statement:
    """The city where he lives is beautiful."""
    name = chooser.pick(tuple(STAYS))
    verb = replace(LOCAL_VERBS[name], complements=(), flags=LOCAL_VERBS[name].flags - {"c"})
    key = chooser.pick(noun_keys(STAYS[name]))
    choices = [one for one in sayable(key) if one.key in PROPERTIES]
    if not choices:
        return where(chooser)
    inner = clause(
        chooser,
        Setting(
            subject=somebody(chooser), verb=verb, negation_chance=0, is_plain=chooser.chance(0.6)
        ),
    )
    head = Described(noun=NOUNS[key], determiner="the", relative=Relative("place", inner))
    return Statement(
        clause=Clause(subject=head, verb=BE, predicate=quality(chooser, chooser.pick(choices)))
    )
