"""Where something is, and what there is somewhere."""

from phrasebook.chooser import Chooser
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.phrases import PEOPLE, container, described, perhaps_not, person, place
from phrasebook.predicates import BE, NOT_OWNED, the_thing
from phrasebook.syntax import Clause, Described, Determiner, Fixed, NounPhrase, heads
from phrasebook.times import time
from phrasebook.verbs import OTHERS
from phrasebook.words import Tense

THERE = Fixed("there", "il")
SMALL = noun_keys(
    "small_thing tableware clothes pet book letter newspaper novel dictionary postcard"
)
LARGE = noun_keys("car bicycle truck bus taxi tractor tree")
SITES = noun_keys("building bridge park river beach lake market")
ON_TABLES = ("on:table,chair,bed,armchair,carpet", "under:table,bed,chair,armchair")
IN_BOXES = ("in:box,bag,basket,suitcase", "in:kitchen,bedroom,living room,bathroom,office")
BESIDE = tuple(
    f"{preposition}:{place}"
    for preposition in ("behind", "in front of", "near", "next to")
    for place in ("house,school,station,church", "museum,hotel,hospital,library,bank,theater,tree")
)
EVENTS = (
    ("accident", "near:bridge,school,station,hospital"),
    ("accident", "in:street,park"),
    ("accident", "at:station,airport"),
    ("storm", "near:lake,mountain,beach"),
    ("concert", "in:park,church"),
    ("party", "at:school,castle,university"),
    ("meeting", "at:office,library"),
    ("wedding", "at:castle"),
    ("wedding", "in:church,garden"),
    ("match", "near:beach,school"),
)
MISHAPS = {"accident", "storm"}
WHERE_PEOPLE_ARE = (
    "in:kitchen,garden,bedroom,living room,office,park,street,city",
    "at:market,restaurant,museum,library,hospital,station,airport,beach,school,university,theater",
)


def location(chooser: Chooser) -> Clause:
    """Where something or somebody is."""
    subject: NounPhrase
    match chooser.weighted({"small": 8, "large": 3, "site": 3, "person": 5}):
        case "small":
            key = chooser.pick(SMALL)
            subject, token = the_thing(chooser, key), chooser.pick(ON_TABLES + IN_BOXES)
            if token.startswith("in:box") and NOUNS[key].group == "pet":
                token = IN_BOXES[1]
        case "large":
            subject, token = the_thing(chooser, chooser.pick(LARGE)), chooser.pick(BESIDE)
        case "site":
            key = chooser.pick(SITES)
            subject = described(chooser, key, weights=NOT_OWNED)
            token = chooser.pick(BESIDE)
        case _:
            subject, token = person(chooser), chooser.pick(WHERE_PEOPLE_ARE)
    where = place(chooser, token, subject.agreement)
    if isinstance(subject, Described) and heads(where.object) == heads(subject):
        return location(chooser)
    is_person = not isinstance(subject, Described) or subject.noun.key in PEOPLE
    tense: Tense = "future" if is_person and chooser.chance(0.25) else "present"
    when = (time(chooser, tense, is_far=False),) if tense == "future" else ()
    negation = "" if isinstance(subject, Fixed) else perhaps_not(chooser, 0.12)
    return Clause(
        subject=subject, verb=BE, tense=tense, negation=negation, modifiers=(where, *when)
    )


def existence(chooser: Chooser) -> Clause:
    """There is a cat under the table; there is no milk in the kitchen."""
    weights: dict[Determiner, int] = {"a": 8, "number": 6, "bare": 1, "some": 4, "a lot of": 2}
    match chooser.weighted(
        {"small": 5, "food": 5, "animal": 3, "site": 3, "people": 3, "event": 3}
    ):
        case "event":
            return _event(chooser)
        case "small":
            key, token = chooser.pick(SMALL), chooser.pick(ON_TABLES + IN_BOXES)
        case "food":
            key = chooser.pick(noun_keys("food drink ingredient"))
            token = chooser.pick(("on:table", "in:kitchen,bag,basket", "at:market"))
        case "animal":
            key = chooser.pick(noun_keys("animal"))
            token = chooser.pick(("in:garden,field,forest,park", "under:tree", *BESIDE))
            if key in {"cat", "bird", "mouse", "owl", "bee"}:
                token = "on:roof"
        case "site":
            key, token = chooser.pick(SITES + LARGE), chooser.pick(BESIDE)
        case _:
            key, token = chooser.pick(PEOPLE), chooser.pick(WHERE_PEOPLE_ARE)
    negation = perhaps_not(chooser, 0.2)
    if negation:
        weights = {"bare": 1}
    if NOUNS[key].number == "singular":
        return existence(chooser)
    what = described(chooser, key, weights=weights, adjective_chance=0.15)
    if not negation and chooser.chance(0.15):
        what = container(chooser, (key,)) or what
    where = place(chooser, token, THERE.agreement)
    if heads(where.object) == (key,):
        return existence(chooser)
    tense: Tense = "future" if chooser.chance(0.1) else "present"
    return Clause(
        subject=THERE,
        verb=OTHERS["be there"],
        tense=tense,
        negation=negation,
        object=what,
        modifiers=(where,),
    )


def _event(chooser: Chooser) -> Clause:
    """There was an accident near the bridge yesterday."""
    key, token = chooser.pick(EVENTS)
    tense: Tense = "past" if key in MISHAPS or chooser.chance(0.6) else "future"
    return Clause(
        subject=THERE,
        verb=OTHERS["be there"],
        tense=tense,
        object=described(chooser, key, weights={"a": 1}, adjective_chance=0.2),
        modifiers=(
            place(chooser, token, THERE.agreement),
            time(chooser, tense, is_far=chooser.chance(0.5)),
        ),
    )
