"""Noun phrases and places drawn at random, so that they make sense where they stand."""

from functools import cache

from phrasebook.chooser import Chooser
from phrasebook.modifiers import (
    ADJECTIVES,
    CONJUNCTION_WORDS,
    NAMES,
    NUMBERS,
    PLACE_NAMES,
    PREPOSITION_WORDS,
)
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.syntax import (
    Agreement,
    Described,
    Determiner,
    Fixed,
    Locality,
    Modifier,
    Negation,
    NounPhrase,
    Pair,
    Person,
    Phrase,
    Pronoun,
)
from phrasebook.words import Adjective, Noun, Number

ME = Agreement(1)
YOU = Agreement(2, is_plural=True)
HE = Agreement()
SHE = Agreement(is_feminine=True)
WE = Agreement(1, is_plural=True)
THEY = Agreement(is_plural=True)
OWN: dict[str, Determiner] = {"I": "my", "you": "your", "we": "our", "they": "their", "he": "his"}
EVERYBODY = Fixed("everybody", "tout le monde")
NOBODY = Fixed("nobody", "personne", is_negative=True)
PERSON = frozenset(noun_keys("person"))
RELATIVES = frozenset(noun_keys("parent kin"))
PEOPLE = noun_keys("folk job")
SMALL_NUMBERS = tuple(NUMBERS.values())[:19]  # up to twenty
DESTINATIONS = noun_keys(
    "market school museum restaurant hospital beach library bank church airport station theater"
    " park sea mountain university office castle factory farm hotel"
)
CONTAINERS = {
    "cup": noun_keys("coffee tea milk"),
    "glass": noun_keys("water milk wine beer"),
    "bottle": noun_keys("water milk wine beer oil"),
    "box": noun_keys("chocolate cookie"),
    "basket": noun_keys("fruit mushroom potato"),
}
ORDINALS = {"first", "last"}


@cache
def attributes(noun: str) -> tuple[Adjective, ...]:
    """The adjectives that may stand beside a noun."""
    return tuple(
        adjective
        for adjective in ADJECTIVES.values()
        if noun in adjective.nouns and adjective.position != "predicate"
    )


def perhaps_not(chooser: Chooser, probability: float) -> Negation:
    """A plain negation now and then."""
    return "not" if chooser.chance(probability) else ""


def own(agreement: Agreement) -> Determiner:
    """The possessive of a person: my, her …"""
    determiner = OWN[agreement.label]
    return "her" if determiner == "his" and agreement.is_feminine else determiner


def described(
    chooser: Chooser,
    key: str,
    *,
    weights: dict[Determiner, int],
    possessor: Agreement | None = None,
    adjective_chance: float = 0.31,
    plural_chance: float = 0.3,
) -> Described:
    """A noun with a determiner drawn by weight; `my` stands for the possessor's own."""
    noun = NOUNS[key]
    determiner = chooser.weighted({key: weights[key] for key in weights if fits(key, noun)})
    if determiner == "my":
        determiner = own(possessor or chooser.pick((ME, ME, YOU, HE, SHE, WE, THEY)))
    is_plural = noun.number == "plural" or _is_plural(chooser, determiner, noun, plural_chance)
    adjectives: tuple[Adjective, ...] = ()
    if determiner not in {"how many", "generic"} and chooser.chance(adjective_chance):
        adjectives = _adjectives(chooser, noun, may_count=determiner == "the" and not is_plural)
    owner: Person | Described | None = None
    if determiner == "owner":
        owner = person_name(chooser) if chooser.chance(0.5) else relative(chooser, is_single=True)
    number: Number | None = None
    if determiner == "number":
        is_rarely_many = key in PERSON or noun.group in {"building", "outdoors", "room"}
        number = chooser.favor(SMALL_NUMBERS[:5] if is_rarely_many else SMALL_NUMBERS)
    return Described(
        noun=noun,
        determiner=determiner,
        is_plural=is_plural,
        adjectives=adjectives,
        number=number,
        owner=owner,
    )


def kind_of_thing(key: str) -> Described:
    """All of a kind: apples, les pommes; coffee, le café."""
    noun = NOUNS[key]
    is_plural = not noun.mass and noun.number != "singular"
    return Described(noun=noun, determiner="generic", is_plural=is_plural)


def fits(determiner: Determiner, noun: Noun) -> bool:
    """Whether a determiner can stand before a noun."""
    if determiner in {"number", "how many"}:
        return noun.number == "both" and not noun.mass
    if determiner in {"a", "every"}:
        return noun.number == "both" and not noun.mass
    if determiner in {"bare", "some", "a lot of"}:
        return noun.number == "both" or noun.mass
    return True


def _is_plural(chooser: Chooser, determiner: Determiner, noun: Noun, plural_chance: float) -> bool:
    if noun.mass or noun.number == "singular" or determiner in {"a", "every"}:
        return False
    if determiner in {"bare", "some", "a lot of", "number", "how many", "generic"}:
        return True
    return chooser.chance(plural_chance)


def _adjectives(chooser: Chooser, noun: Noun, *, may_count: bool) -> tuple[Adjective, ...]:
    choices = [one for one in attributes(noun.key) if may_count or one.key not in ORDINALS]
    if not choices:
        return ()
    ordinals = [one for one in choices if one.key in ORDINALS]
    if ordinals and chooser.chance(0.5):
        return (chooser.pick(ordinals),)
    first = chooser.pick(choices)
    after = [one for one in choices if one.position == "after" and one.key != "delicious"]
    if first.position == "before" and first.key not in ORDINALS and after and chooser.chance(0.15):
        return first, chooser.pick(after)
    return (first,)


def person_name(chooser: Chooser) -> Person:
    """Somebody by name."""
    return Person(chooser.favor(tuple(NAMES.values())))


def relative(
    chooser: Chooser, possessor: Agreement | None = None, *, is_single: bool = False
) -> Described:
    """Somebody of one's family or acquaintance."""
    key = chooser.pick(noun_keys("kin kin parent") + noun_keys("kin"))
    weights: dict[Determiner, int] = {"my": 9, "owner": 0 if is_single else 1}
    phrase = described(chooser, key, weights=weights, possessor=possessor, adjective_chance=0.08)
    if not is_single or not phrase.is_plural:
        return phrase
    return Described(noun=phrase.noun, determiner=phrase.determiner, adjectives=phrase.adjectives)


def somebody(chooser: Chooser, keys: tuple[str, ...] = PEOPLE) -> Described:
    """Somebody by what he is: the doctor, this woman, two children."""
    weights: dict[Determiner, int] = {"the": 14, "this": 3, "that": 2, "number": 1, "every": 1}
    return described(chooser, chooser.favor(keys), weights=weights)


def pronoun(chooser: Chooser) -> Pronoun:
    """A personal pronoun."""
    return Pronoun(chooser.weighted({ME: 9, YOU: 6, HE: 8, SHE: 8, WE: 7, THEY: 7}))


def person(chooser: Chooser) -> NounPhrase:
    """Whoever does something."""
    kind = chooser.weighted({"pronoun": 40, "name": 17, "kin": 17, "folk": 15, "pair": 8, "all": 3})
    match kind:
        case "pronoun":
            return pronoun(chooser)
        case "name":
            return person_name(chooser)
        case "kin":
            return relative(chooser)
        case "folk":
            return somebody(chooser)
        case "pair":
            return pair(chooser)
        case _:
            return EVERYBODY if chooser.chance(0.6) else NOBODY


def pair(chooser: Chooser) -> Pair:
    """Two people: Paul and I, Emma and her sister."""
    first = person_name(chooser)
    second: NounPhrase = person_name(chooser)
    while second == first:
        second = person_name(chooser)
    match chooser.weighted({"names": 5, "relative": 4, "I": 3}):
        case "relative":
            second = relative(chooser, first.agreement, is_single=True)
        case "I":
            second = Pronoun(ME)
    return Pair(first, second, CONJUNCTION_WORDS["and"])


def other_person(chooser: Chooser, subject: NounPhrase) -> NounPhrase:
    """Somebody else than the subject, as an object."""
    match chooser.weighted({"pronoun": 9, "name": 4, "kin": 7, "folk": 3}):
        case "pronoun":
            return other_pronoun(chooser, subject)
        case "name":
            other = person_name(chooser)
            return other if str(other) not in str(subject) else relative(chooser)
        case "kin":
            agreement = subject.agreement if chooser.chance(0.6) else None
            return relative(chooser, agreement)
        case _:
            return described(chooser, chooser.favor(PEOPLE), weights={"the": 4, "that": 1})


def other_pronoun(chooser: Chooser, subject: NounPhrase) -> Pronoun:
    """A pronoun for somebody else than the subject."""
    agreement = subject.agreement
    choices = [one for one in (ME, YOU, HE, SHE, WE, THEY) if one.person != agreement.person]
    if agreement.person == 3:
        choices += [THEY] if not agreement.is_plural else [HE, SHE]
        choices += [HE if agreement.is_feminine else SHE]
    return Pronoun(chooser.pick(choices))


def place(chooser: Chooser, token: str, possessor: Agreement) -> Phrase:
    """Where something happens, from a token of the verb table: in:kitchen,garden."""
    preposition, _, names = token.partition(":")
    key = chooser.pick(names.split(","))
    is_private = NOUNS[key].group in {"room", "furniture"} or key in {"garden", "office", "house"}
    weights: dict[Determiner, int] = {"the": 6, "my": 2 * is_private, "this": preposition != "at"}
    phrase = described(chooser, key, weights=weights, possessor=possessor, adjective_chance=0.08)
    if phrase.is_plural:
        phrase = Described(noun=phrase.noun, determiner=phrase.determiner)
    return Phrase(PREPOSITION_WORDS[preposition], phrase)


def journey(chooser: Chooser, relation: str) -> Modifier:
    """Where somebody goes to or comes from."""
    if chooser.chance(0.4 if relation == "to" else 0.2):
        return Locality(
            "to" if relation == "to" else "from", chooser.pick(tuple(PLACE_NAMES.values()))
        )
    key = chooser.favor(DESTINATIONS)
    phrase = Described(noun=NOUNS[key], determiner="the")
    return Phrase(PREPOSITION_WORDS[relation], phrase)


def container(chooser: Chooser, contents: tuple[str, ...]) -> Described | None:
    """A cup, a glass … of one of the contents; none if there is nothing for it."""
    choices = [
        (vessel, content)
        for vessel, fitting in CONTAINERS.items()
        for content in fitting
        if content in contents
    ]
    if not choices:
        return None
    vessel, content = chooser.pick(choices)
    phrase = described(chooser, vessel, weights={"a": 4, "number": 2}, adjective_chance=0)
    return Described(
        noun=phrase.noun,
        determiner=phrase.determiner,
        is_plural=phrase.is_plural,
        number=phrase.number,
        content=NOUNS[content],
    )
