"""Statements of two clauses: because, when, if, so, but, and."""

from dataclasses import replace

from phrasebook.chooser import Chooser
from phrasebook.clauses import Setting, clause
from phrasebook.modifiers import ADJECTIVES, ADVERBS, CONJUNCTION_WORDS
from phrasebook.nouns import noun_keys
from phrasebook.phrases import described, kind_of_thing, person
from phrasebook.predicates import BE, IT, THINGS, sayable, the_thing
from phrasebook.syntax import (
    Clause,
    Determiner,
    Fixed,
    Link,
    NounPhrase,
    Pronoun,
    Quality,
    Statement,
)
from phrasebook.verbs import INTRANSITIVES, MODALS, OTHERS, TRANSITIVES
from phrasebook.words import Adjective, Tense, names

VERBS = {verb.key: verb for verb in (*INTRANSITIVES, *TRANSITIVES, *OTHERS.values())}
# a state, and what one does in it as verb:objects
STATES = {
    "hungry": "eat:food prepare:meal,sandwich,soup make:sandwich,cake,salad buy:bread,fruit,cookie",
    "thirsty": "drink:water,tea,milk,beer buy:water,milk",
    "cold": "wear:coat,sweater,scarf,hat,glove close:window,door drink:tea,coffee"
    " look_for:blanket,scarf,sweater,coat",
    "tired": "rest sleep go_to_bed stay look_for:chair,bed,armchair drink:coffee take:taxi,bus",
    "sick": "call:doctor,mother stay rest drink:tea,water look_for:doctor,hospital",
    "happy": "sing dance smile laugh",
    "sad": "cry call:friend,mother,sister look_at:photo listen_to:song",
    "late": "run take:taxi,bus,car",
}
IDIOMS = {"hungry", "thirsty", "cold", "late"}
WEATHER = {
    "rain": "stay take:umbrella,bus,taxi wear:coat,hat close:window,door watch:film read:book",
    "snow": "stay wear:coat,glove,scarf,hat watch:film drink:tea play:cards,chess",
}
REASONS = {
    "happy": "win:match find:key,ring,wallet,dog,cat receive:gift,letter succeed",
    "sad": "lose:ring,wallet,match,ball break:mirror,toy,glass forget:meeting",
    "proud": "win:match build:house,boat,wall repair:car,roof,clock write:novel,poem,story succeed",
    "tired": "work dance walk run swim travel",
}
CONTRASTS = {
    "tired": "work dance clean:kitchen,house,bedroom study:lesson,language wash:dress,shirt,car",
    "sick": "work travel dance go_out",
    "sad": "smile laugh sing dance",
    "shy": "sing dance talk_to:teacher,boss",
    "young": "work drive:car,truck,bus travel speak:language",
    "old": "run swim dance drive:car travel",
    "rich": "work take:bus",
    "poor": "smile travel help:neighbor,friend,child",
}
ADVANTAGES = names(
    "big beautiful pretty good light fast clean fresh delicious modern famous interesting funny"
    " easy useful comfortable quiet soft elegant strong important"
)
DRAWBACKS = names(
    "small old bad fat expensive heavy slow dirty boring difficult dangerous empty broken wet"
    " closed lazy"
)
LASTING = {"young", "old", "rich", "poor"}
ALIKE = (
    "drink",
    "fruit",
    "vegetable",
    "sport",
    "language",
    "meat fish",
    "bread rice",
    "butter jam",
)
# what is done to a thing, and then
FOLLOW_UPS = {
    "have": "wash clean repair sell lend use drive wear show feed",
    "buy": "eat drink read give wear lend share prepare hide use serve send wash sell",
    "find": "open show give wash hide feed use",
    "receive": "read open translate show hide finish wear",
    "choose": "buy pay_for",
    "make": "eat share serve cut bring give",
    "write": "send translate finish show read",
    "prepare": "serve eat share bring",
    "look for": "find use",
    "lose": "find look_for",
    "break": "repair",
    "draw": "show paint",
    "open": "read close show",
    "pick": "eat give wash",
    "paint": "sell show",
    "cut": "eat share serve",
    "learn": "forget sing explain understand",
    "bring": "share eat open serve",
    "see": "follow feed draw",
}
NOT_TAKEN_UP = frozenset(noun_keys("person baby language sport"))
OPPOSITES = [
    names(pair)
    for pair in (
        "clean dirty",
        "big small",
        "heavy light",
        "fast slow",
        "good delicious bad",
        "interesting funny boring",
        "easy difficult",
        "modern old",
        "fresh old",
    )
]
NEW: dict[Determiner, int] = {"a": 9, "number": 4, "some": 3, "bare": 1, "the": 2, "my": 2}


def _qualities(noun: str) -> tuple[list[Adjective], list[Adjective]]:
    """What may be said for a thing and what against it."""
    said = sayable(noun)
    return (
        [adjective for adjective in said if adjective.key in ADVANTAGES],
        [adjective for adjective in said if adjective.key in DRAWBACKS],
    )


BALANCED = [key for key in THINGS if all(_qualities(key))]


def again(subject: NounPhrase) -> Pronoun:
    """The pronoun for somebody spoken of before."""
    return Pronoun(subject.agreement)


def somebody(chooser: Chooser) -> NounPhrase:
    """A person whom a pronoun can take up."""
    subject = person(chooser)
    return somebody(chooser) if isinstance(subject, Fixed) else subject


def action(chooser: Chooser, row: str, subject: NounPhrase, tense: Tense) -> Clause:
    """One of the actions of a row of the tables above."""
    name, _, objects = chooser.pick(row.split()).partition(":")
    setting = Setting(
        subject=subject,
        tense=tense,
        verb=VERBS[name.replace("_", " ")],
        objects=noun_keys(objects.replace(",", " ")),
        is_plain=True,
        is_bare=True,
        negation_chance=0,
    )
    built = clause(chooser, setting)
    if name == "stay":
        built = replace(built, modifiers=(ADVERBS["at home"],))
    return replace(built, is_progressive=tense == "present", adverb=None)


def state(name: str, subject: NounPhrase) -> Clause:
    """Somebody is hungry, tired …"""
    if name in IDIOMS:
        return Clause(subject=subject, verb=VERBS[f"be {name}"])
    return Clause(subject=subject, verb=BE, predicate=Quality(adjective=ADJECTIVES[name]))


def weather(name: str, *, is_progressive: bool = False) -> Clause:
    """It rains, it is snowing."""
    return Clause(subject=IT, verb=OTHERS[name], is_progressive=is_progressive)


def _link(name: str, linked: Clause) -> Link:
    return Link(CONJUNCTION_WORDS[name], linked)


def because(chooser: Chooser) -> Statement:
    """What somebody does and why; or how somebody is, and what has happened."""
    subject = somebody(chooser)
    match chooser.weighted({"state": 5, "weather": 2, "event": 4}):
        case "state":
            name = chooser.pick(tuple(STATES))
            main = action(chooser, STATES[name], subject, "present")
            return Statement(clause=main, link=_link("because", state(name, again(subject))))
        case "weather":
            name = chooser.pick(tuple(WEATHER))
            main = action(chooser, WEATHER[name], subject, "present")
            reason = weather(name, is_progressive=True)
            return Statement(clause=main, link=_link("because", reason))
        case _:
            name = chooser.pick(tuple(REASONS))
            event = action(chooser, REASONS[name], again(subject), "past")
            return Statement(clause=state(name, subject), link=_link("because", event))


def consequence(chooser: Chooser) -> Statement:
    """He is hungry, so he will eat a sandwich."""
    subject = somebody(chooser)
    name = chooser.pick(tuple(STATES))
    tense: Tense = "future" if chooser.chance(0.5) else "present"
    result = action(chooser, STATES[name], again(subject), tense)
    return Statement(clause=state(name, subject), link=_link("so", result))


def when(chooser: Chooser) -> Statement:
    """She sings when she is happy; they take the bus when it rains."""
    subject = somebody(chooser)
    rows = STATES if chooser.chance(0.7) else WEATHER
    name = chooser.pick(tuple(rows))
    main = action(chooser, rows[name], subject, "present")
    if main.is_progressive and "h" in main.verb.flags:
        return when(chooser)
    main = replace(main, is_progressive=False)
    occasion = weather(name) if rows is WEATHER else state(name, again(subject))
    return Statement(clause=main, link=_link("when", occasion))


def condition(chooser: Chooser) -> Statement:
    """If you are tired, you can rest; if it rains, we will stay at home."""
    subject = somebody(chooser)
    rows = STATES if chooser.chance(0.65) else WEATHER
    name = chooser.pick(tuple(rows))
    first, then = (subject, again(subject)) if rows is STATES else (IT, subject)
    if chooser.chance(0.65):
        main = action(chooser, rows[name], then, "future")
    else:
        inner = action(chooser, rows[name], then, "infinitive")
        verb = "can" if name in {"happy", "sad"} or chooser.chance(0.5) else "must"
        main = Clause(subject=then, verb=MODALS[verb], infinitive=inner)
    given = weather(name) if rows is WEATHER else state(name, first)
    return Statement(clause=main, condition=_link("if", given))


def but(chooser: Chooser) -> Statement:
    """Paul is tired, but he is working; I like tea, but I prefer coffee."""
    subject = somebody(chooser)
    if chooser.chance(0.6):
        name = chooser.pick(tuple(CONTRASTS))
        contrast = action(chooser, CONTRASTS[name], again(subject), "present")
        if name in LASTING:
            contrast = replace(contrast, is_progressive=False)
        return Statement(clause=state(name, subject), link=_link("but", contrast))
    keys = noun_keys(chooser.pick(ALIKE))
    liked = chooser.pick(keys)
    preferred = chooser.pick([key for key in keys if key != liked])
    first = Clause(subject=subject, verb=VERBS["like"], object=kind_of_thing(liked))
    second = Clause(subject=again(subject), verb=VERBS["prefer"], object=kind_of_thing(preferred))
    return Statement(clause=first, link=_link("but", second))


def but_it(chooser: Chooser) -> Statement:
    """The car is old, but it is fast."""
    key = chooser.pick(BALANCED)
    good, bad = _qualities(key)
    adjectives = chooser.shuffled([chooser.pick(good), chooser.pick(bad)])
    if any(opposites.issuperset(one.key for one in adjectives) for opposites in OPPOSITES):
        return but_it(chooser)
    subject = the_thing(chooser, key, adjective_chance=0)
    it = Pronoun(subject.agreement, is_thing=True, antecedent=subject.noun)
    first, second = (Quality(adjective=adjective) for adjective in adjectives)
    main = Clause(subject=subject, verb=BE, predicate=first)
    return Statement(clause=main, link=_link("but", Clause(subject=it, verb=BE, predicate=second)))


def follow_up(chooser: Chooser) -> Statement:
    """She has a car and she washes it every day."""
    first = VERBS[chooser.pick(tuple(FOLLOW_UPS))]
    second = VERBS[chooser.pick(FOLLOW_UPS[first.key].split()).replace("_", " ")]
    keys = [key for key in first.objects if key in second.objects and key not in NOT_TAKEN_UP]
    if not keys:
        return follow_up(chooser)
    subject = somebody(chooser)
    phrase = described(
        chooser, chooser.pick(keys), weights=NEW, possessor=subject.agreement, adjective_chance=0.2
    )
    it = Pronoun(phrase.agreement, is_thing=True, antecedent=phrase.noun)
    tenses: tuple[Tense, ...] = ("past", "future")
    if first.key == "have":
        phrase = described(chooser, phrase.noun.key, weights={"a": 9, "number": 3, "some": 1})
        it = Pronoun(phrase.agreement, is_thing=True, antecedent=phrase.noun)
        main = Clause(subject=subject, verb=first, object=phrase)
        tenses = ("present", "present", "future")
    else:
        main = clause(
            chooser,
            Setting(subject=subject, tense="past", verb=first, is_plain=True, negation_chance=0),
        )
        main = replace(main, object=phrase, recipient=None, recipient_is_first=False, modifiers=())
    is_contrary = chooser.chance(0.3)
    setting = Setting(
        subject=again(subject),
        tense=chooser.pick(tenses),
        verb=second,
        negation_chance=1 if is_contrary else 0,
        is_plain=is_contrary or chooser.chance(0.5),
        object=it,
        just_not=True,
    )
    return Statement(
        clause=main, link=_link("but" if is_contrary else "and", clause(chooser, setting))
    )
