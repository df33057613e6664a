"""The combinations that are kept out of training: which verb with which object, which form.

Words and forms all occur in training, but some of them never together; a model that has learned
the parts of a sentence and not only sentences translates them all the same.
"""

from collections import Counter
from dataclasses import dataclass

from phrasebook.chooser import Chooser
from phrasebook.nouns import NOUNS
from phrasebook.phrases import PERSON
from phrasebook.pronouns import usual_objects
from phrasebook.syntax import Usage, verb_name
from phrasebook.verbs import ALL_VERBS, INTRANSITIVES, MODALS, TRANSITIVES
from phrasebook.words import Tense

Pair = tuple[str, str]  # verb, object noun
Form = tuple[str, Tense, str]  # verb, tense, person
PERSONS = ("I", "you", "he", "we", "they")
ALSO_ADJECTIVES = {"open", "close", "clean"}  # whose participles the lexicon has as adjectives
# whose present cannot be told from their other forms: vous faites, vous dites
UNPREDICTABLE = {"être", "avoir", "aller", "faire", "dire"}
RESTRICTED = frozenset("npofax")  # flags of verbs that not every tense suits
FEWEST_OBJECTS = 6
FEWEST_VERBS = 6


@dataclass(frozen=True, slots=True)
class Combinations:
    """Pairs of verb and object, and forms of verbs by tense and person."""

    pairs: frozenset[Pair]
    forms: frozenset[Form]

    def pairs_in(self, usages: tuple[Usage, ...]) -> frozenset[Pair]:
        """Those pairs that are among the usages."""
        return self.pairs & {(usage.verb, usage.object) for usage in usages}

    def forms_in(self, usages: tuple[Usage, ...]) -> frozenset[Form]:
        """Those forms that are among the usages."""
        return self.forms & {(usage.verb, usage.tense, usage.person) for usage in usages}


def choose_combinations(chooser: Chooser) -> Combinations:
    """What is held out: a few objects of every verb that has many, a form of most verbs."""
    return Combinations(frozenset(_choose_pairs(chooser)), frozenset(_choose_forms(chooser)))


def _choose_pairs(chooser: Chooser) -> list[Pair]:
    verbs_of: dict[str, set[str]] = {key: set() for key in NOUNS}
    objects_of: dict[str, list[str]] = {}
    for verb in TRANSITIVES:
        for key in verb.objects:
            verbs_of[key].add(verb_name(verb))
        if verb.key not in ALSO_ADJECTIVES:
            objects_of.setdefault(verb_name(verb), []).extend(verb.objects)
    pairs: list[Pair] = []
    taken: Counter[str] = Counter()
    kept = usual_objects()
    for name, keys in objects_of.items():
        free = [
            key
            for key in keys
            if len(verbs_of[key]) >= FEWEST_VERBS * (taken[key] + 1)
            and NOUNS[key].group not in {"language", "sport"}
            and (name, key) not in kept
        ]
        if len(keys) < FEWEST_OBJECTS:
            continue
        for key in chooser.shuffled(free)[: 2 if len(keys) < 2 * FEWEST_OBJECTS else 3]:
            taken[key] += 1
            pairs.append((name, key))
    return pairs


def _choose_forms(chooser: Chooser) -> list[Form]:
    names_of: dict[str, set[str]] = {}
    flags_of: dict[str, frozenset[str]] = {}
    for verb in ALL_VERBS:
        names_of.setdefault(verb.french, set()).add(verb_name(verb))
        flags_of[verb_name(verb)] = flags_of.get(verb_name(verb), frozenset()) | verb.flags
    forms: dict[str, Form] = {}
    kept = {verb for verb, _ in usual_objects()}  # in the third person
    for verb in (*TRANSITIVES, *INTRANSITIVES, *MODALS.values()):
        name = verb_name(verb)
        is_shared = len(names_of[verb.french]) > 1
        is_anybody = not verb.subjects or PERSON.issubset(verb.subjects)
        if name in forms or is_shared or not is_anybody or flags_of[name] & RESTRICTED:
            continue
        choices: list[tuple[Tense, str]] = [
            (tense, one)
            for tense in ("future", "past")
            for one in PERSONS
            if not (name in kept and one == "he")
        ]
        if verb.french not in UNPREDICTABLE:
            choices += [("present", "we"), ("present", "you")]
        forms[name] = (name, *chooser.pick(choices))
    return list(forms.values())
