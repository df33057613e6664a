"""What `it` stands for: two nouns of different gender, and an adjective that fits one of them.

The animal did not cross the street because it was too tired (il), or too wide (elle). Neither the
adjective, nor the nouns, nor their order tells the French pronoun; only all of them together do.
"""

from collections import Counter
from dataclasses import dataclass, replace

from phrasebook.chooser import Chooser
from phrasebook.linked import again, somebody
from phrasebook.modifiers import ADJECTIVES, ADVERBS, CONJUNCTION_WORDS, DEGREE_WORDS
from phrasebook.nouns import NOUNS, noun_keys
from phrasebook.phrases import described, person_name, relative
from phrasebook.predicates import BE, IT
from phrasebook.syntax import (
    Clause,
    Described,
    Determiner,
    Link,
    NounPhrase,
    Pronoun,
    Quality,
    Statement,
    verb_name,
)
from phrasebook.verbs import OTHERS, TRANSITIVES
from phrasebook.words import Adverb, Degree, Noun, Tense

Pair = tuple[str, str]  # keys of two words
VERBS = {verb.key: verb for verb in TRANSITIVES}
STATES = "tired sick sad nervous lazy slow"  # of animals
MOODS = "tired sick sad nervous curious"  # of people
ARTICLES: dict[Determiner, int] = {"the": 7, "this": 1, "that": 1}
TENSES: dict[Tense, int] = {"past": 4, "present": 1, "future": 1}
DEGREES = {"too": 6, "very": 2, "so": 1}
PLURAL_CHANCE = 0.1  # The animals did not cross the street because it was too wide.
# Without such pairs, one noun would tell the gender of both.
SAME_GENDER_CHANCE = 0.4
NUM_PAIRS_OF_A_GENDER = 60  # held out, with a masculine animal and with a feminine one


@dataclass(frozen=True, slots=True)
class Scene:
    """Things of a kind, what animals do with them and they to animals, and what they may be.

    `not_` before a verb negates it.
    """

    things: str
    actions: str  # The animal did not cross the street.
    effects: str  # The street frightened the animal.
    qualities: str


SCENES = (
    Scene(
        things="outdoors",
        actions="not_cross not_explore not_enter leave avoid",
        effects="frighten stop surprise worry not_attract not_interest",
        qualities="wide narrow muddy",
    ),
    Scene(
        things="food",
        actions="not_eat not_taste not_swallow not_finish refuse",
        effects="surprise bother not_attract not_interest",
        qualities="salty bitter sweet rotten",
    ),
    Scene(
        things="furniture small_thing tableware clothes lamp ladder book door wall",
        actions="not_push not_pull not_move not_carry avoid",
        effects="frighten stop surprise bother not_attract not_interest",
        qualities="heavy fragile bulky",
    ),
)
ANIMAL_SCENE = Scene(  # with a person
    things="animal",
    actions="not_feed not_follow not_wash not_stop not_photograph avoid",
    effects="surprise worry bother not_attract not_interest",
    qualities=STATES,
)


@dataclass(frozen=True, slots=True)
class Antecedents:
    """The two nouns that `it` could stand for, and what is said of each."""

    scene: Scene
    animal: Noun
    thing: Noun
    state: str  # of the animal
    quality: str  # of the thing

    @property
    def pair(self) -> Pair:
        """The keys of the nouns."""
        return self.animal.key, self.thing.key


@dataclass(frozen=True, slots=True)
class Case:
    """A sentence with `it`, the noun that it stands for and the one that it does not."""

    sentence: Statement
    right: Noun
    wrong: Noun


def choose_antecedents(chooser: Chooser, *, same_gender_chance: float = 0) -> Antecedents:
    """An animal and a thing, each gender as likely, by default of different genders."""
    scene = chooser.pick(SCENES)
    state, quality = chooser.pick(STATES.split()), chooser.pick(scene.qualities.split())
    genders = chooser.shuffled(("m", "f"))
    if chooser.chance(same_gender_chance):
        genders = (genders[0], genders[0])
    animal = NOUNS[chooser.pick(_keys(ANIMAL_SCENE.things, genders[0], state))]
    thing = NOUNS[chooser.pick(_keys(scene.things, genders[1], quality))]
    return Antecedents(scene, animal, thing, state, quality)


def _keys(names: str, gender: str, adjective: str) -> list[str]:
    """The nouns of a gender that an adjective may be said of."""
    return [
        key
        for key in noun_keys(names)
        if NOUNS[key].gender == gender and key in ADJECTIVES[adjective].nouns
    ]


def tell(
    chooser: Chooser, antecedents: Antecedents, *, animal_first: bool, plural: Noun | None = None
) -> tuple[Case, Case]:
    """A sentence about both nouns twice: with the adjective of the animal, and of the thing."""
    scene = antecedents.scene
    animal, thing = (
        described(
            chooser, noun.key, weights=ARTICLES, adjective_chance=0, plural_chance=noun is plural
        )
        for noun in (antecedents.animal, antecedents.thing)
    )
    first, second = (animal, thing) if animal_first else (thing, animal)
    main = _clause(chooser, scene.actions if animal_first else scene.effects, first, second)
    return explain(main, antecedents, DEGREE_WORDS[chooser.weighted(DEGREES)])


def _clause(chooser: Chooser, verbs: str, subject: NounPhrase, object: NounPhrase) -> Clause:
    verb = chooser.pick(verbs.split())
    return Clause(
        subject=subject,
        verb=VERBS[verb.removeprefix("not_")],
        tense=chooser.weighted(TENSES),
        negation="not" if verb.startswith("not_") else "",
        object=object,
    )


def explain(main: Clause, antecedents: Antecedents, degree: Degree) -> tuple[Case, Case]:
    """The clause with either reason."""
    agreements = {
        phrase.noun: phrase.agreement
        for phrase in (main.subject, main.object)
        if isinstance(phrase, Described)
    }
    animal, thing = (
        Pronoun(agreements[noun], is_thing=True, antecedent=noun)
        for noun in (antecedents.animal, antecedents.thing)
    )
    return (
        Case(
            _because(main, animal, antecedents.state, degree),
            right=antecedents.animal,
            wrong=antecedents.thing,
        ),
        Case(
            _because(main, thing, antecedents.quality, degree),
            right=antecedents.thing,
            wrong=antecedents.animal,
        ),
    )


def _tense_of_reason(main: Clause) -> Tense:
    return "imperfect" if main.tense == "past" else "present"


def _because(main: Clause, pronoun: Pronoun, adjective: str, degree: Degree) -> Statement:
    reason = Clause(
        subject=pronoun,
        verb=BE,
        tense=_tense_of_reason(main),
        predicate=Quality(adjective=ADJECTIVES[adjective], degree=degree),
    )
    return Statement(clause=main, link=Link(CONJUNCTION_WORDS["because"], reason))


def because_it(chooser: Chooser) -> Statement:
    """The animal did not cross the street because it was too tired; … too wide."""
    antecedents = choose_antecedents(chooser, same_gender_chance=SAME_GENDER_CHANCE)
    nouns = antecedents.animal, antecedents.thing
    plural = None
    if chooser.chance(PLURAL_CHANCE):
        plural = chooser.pick([noun for noun in nouns if not noun.mass])
    cases = tell(chooser, antecedents, animal_first=chooser.chance(0.5), plural=plural)
    return chooser.pick(cases).sentence


def impersonal(chooser: Chooser) -> Statement:
    """The animal did not cross the street because it was too late; … too warm."""
    antecedents = choose_antecedents(chooser)
    case, _ = tell(chooser, antecedents, animal_first=chooser.chance(0.5))
    main, degree = case.sentence.clause, DEGREE_WORDS[chooser.weighted(DEGREES)]
    reason = Clause(
        subject=IT,
        verb=BE,
        tense=_tense_of_reason(main),
        adverb=Adverb(degree.key, degree.french, "often"),
    )
    if antecedents.scene is SCENES[0] and chooser.chance(0.5):
        reason = replace(reason, verb=OTHERS[chooser.pick(("be warm", "be cool"))])
    else:
        reason = replace(reason, modifiers=(ADVERBS[chooser.pick(("late", "early"))],))
    return Statement(clause=main, link=Link(CONJUNCTION_WORDS["because"], reason))


def people_and_they(chooser: Chooser) -> Statement:
    """The children did not cross the streets because they were too tired; … too wide."""
    subject = somebody(chooser)
    while subject.agreement.label != "they":
        subject = somebody(chooser)
    keys: list[str] = []
    while not keys:  # soup, salad and meat have no plural
        scene, gender = chooser.pick(SCENES), chooser.pick(("m", "f"))
        quality = chooser.pick(scene.qualities.split())
        keys = [key for key in _keys(scene.things, gender, quality) if not NOUNS[key].mass]
    key = chooser.pick([key for key in keys if NOUNS[key].number == "both"])
    things = described(chooser, key, weights=ARTICLES, adjective_chance=0, plural_chance=1)
    main = _clause(chooser, scene.actions, subject, things)
    degree = DEGREE_WORDS[chooser.weighted(DEGREES)]
    if chooser.chance(0.5):
        return _because(main, again(subject), chooser.pick(MOODS.split()), degree)
    they = Pronoun(things.agreement, is_thing=True, antecedent=things.noun)
    return _because(main, they, quality, degree)


def person_and_it(chooser: Chooser) -> Statement:
    """Marie did not cross the street because it was too wide; … because she was too tired."""
    scene = chooser.pick(SCENES) if chooser.chance(0.5) else ANIMAL_SCENE
    quality, gender = chooser.pick(scene.qualities.split()), chooser.pick(("m", "f"))
    key = chooser.pick(_keys(scene.things, gender, quality))
    thing = described(chooser, key, weights=ARTICLES, adjective_chance=0, plural_chance=0)
    it = Pronoun(thing.agreement, is_thing=True, antecedent=thing.noun)
    degree = DEGREE_WORDS[chooser.weighted(DEGREES)]
    if chooser.chance(0.3):
        subject = person_name(chooser) if chooser.chance(0.5) else relative(chooser, is_single=True)
        return _because(_clause(chooser, scene.effects, thing, subject), it, quality, degree)
    subject = somebody(chooser)
    main = _clause(chooser, scene.actions, subject, thing)
    if chooser.chance(0.3):
        mood = chooser.pick(MOODS.split())
        return _because(main, again(subject), mood, degree)
    return _because(main, it, quality, degree)


def lecture() -> tuple[Antecedents, tuple[Case, Case]]:
    """The example of the lectures on the Transformer."""
    antecedents = Antecedents(SCENES[0], NOUNS["animal"], NOUNS["street"], "tired", "wide")
    animal, street = (
        Described(noun=noun, determiner="the") for noun in (antecedents.animal, antecedents.thing)
    )
    main = Clause(subject=animal, verb=VERBS["cross"], tense="past", negation="not", object=street)
    return antecedents, explain(main, antecedents, DEGREE_WORDS["too"])


def choose_cases(chooser: Chooser) -> dict[Pair, tuple[Case, ...]]:
    """Pairs of animal and thing to hold out, with four sentences each: who is first, who is it."""
    antecedents, example = lecture()
    animal_last = tell(chooser, antecedents, animal_first=False)
    held_out = {antecedents.pair: (*example, *animal_last)}
    numbers = Counter(m=1)
    while len(held_out) < 2 * NUM_PAIRS_OF_A_GENDER:
        antecedents = choose_antecedents(chooser)
        gender = antecedents.animal.gender
        if antecedents.pair not in held_out and numbers[gender] < NUM_PAIRS_OF_A_GENDER:
            numbers[gender] += 1
            held_out[antecedents.pair] = tuple(
                case
                for animal_first in (True, False)
                for case in tell(chooser, antecedents, animal_first=animal_first)
            )
    return held_out


def usual_objects() -> frozenset[Pair]:
    """The verbs of these sentences, each with the objects that it has in them."""
    return frozenset(
        (verb_name(VERBS[verb.removeprefix("not_")]), noun)
        for scene in (*SCENES, ANIMAL_SCENE)
        for verbs, nouns in (
            (scene.actions, noun_keys(scene.things)),
            (scene.effects, noun_keys("animal")),
        )
        for verb in verbs.split()
        for noun in nouns
    )
