"""The corpus: sentences drawn from the grammar and dealt out to the five sets."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from phrasebook import english, french
from phrasebook.chooser import Chooser
from phrasebook.combinations import Combinations, choose_combinations
from phrasebook.pronouns import Pair, choose_cases
from phrasebook.questions import QUESTIONS
from phrasebook.sentences import STATEMENTS
from phrasebook.syntax import Sentence, Usage, contents, verb_name
from phrasebook.words import Lexeme, Name, Noun, Verb

SEED = 5
SIZES = {"test": 1000, "valid": 1000, "train": 34_000}
SIZE_OF_EACH_KIND = 240  # in `combinations`: with a held-out pair, with a held-out form
MOST_OF_ONE_COMBINATION = 4
FEWEST_WORDS, MOST_WORDS = 3, 16
# every kind of sentence with its weight
MAKERS: dict[str, tuple[int, Callable[[Chooser], Sentence]]] = {**STATEMENTS, **QUESTIONS}


@dataclass(frozen=True, slots=True)
class Example:
    """One pair of lines and what they were made from."""

    source: str
    target: str
    kind: str
    usages: tuple[Usage, ...]
    lexemes: frozenset[Lexeme]


@dataclass(frozen=True, slots=True)
class Corpus:
    """The five sets by name, and what only the last two of them have."""

    sets: dict[str, tuple[Example, ...]]
    held_out: Combinations  # of `combinations`
    antecedents: tuple[Pair, ...]  # of each line of `pronouns`, the right one first


def build_corpus() -> Corpus:
    """The whole corpus, always the same."""
    chooser = Chooser(SEED)
    held_out = choose_combinations(chooser)
    cases = choose_cases(chooser)
    plain: list[Example] = []
    kinds: dict[str, list[Example]] = {"pairs": [], "forms": []}
    counts: Counter[object] = Counter()
    num_plain = sum(SIZES.values())
    for example in _examples(chooser):
        if _has_both(example, cases):
            continue
        pairs, forms = held_out.pairs_in(example.usages), held_out.forms_in(example.usages)
        if not pairs and not forms:
            if not _has_pair_by_chance(example, held_out) and len(plain) < num_plain:
                plain.append(example)
        elif not (pairs and forms):
            kind = kinds["pairs" if pairs else "forms"]
            found = pairs or forms
            is_new = all(counts[one] < MOST_OF_ONE_COMBINATION for one in found)
            if is_new and len(kind) < SIZE_OF_EACH_KIND:
                kind.append(example)
                counts.update(found)
        if len(plain) == num_plain and all(
            len(kind) == SIZE_OF_EACH_KIND for kind in kinds.values()
        ):
            break
    sets = {}
    for name, size in SIZES.items():
        sets[name], plain = tuple(plain[:size]), plain[size:]
    sets["combinations"] = tuple(chooser.shuffled(kinds["pairs"] + kinds["forms"]))
    told = [case for of_pair in cases.values() for case in of_pair]
    sets["pronouns"] = tuple(_example("because it", case.sentence) for case in told)
    antecedents = tuple((case.right.key, case.wrong.key) for case in told)
    return Corpus(sets, held_out, antecedents)


def _examples(chooser: Chooser) -> Iterator[Example]:
    """Sentences without end, none of them twice and none with two translations."""
    weights = {kind: weight for kind, (weight, _) in MAKERS.items()}
    seen: dict[str, str] = {}
    while True:
        kind = chooser.weighted(weights)
        tree = MAKERS[kind][1](chooser)
        example = _example(kind, tree)
        source, target = example.source, example.target
        if source in seen:
            if seen[source] != target:
                raise AssertionError(f"{source}: {target} and {seen[source]}")
        elif FEWEST_WORDS <= len(source.split()) <= MOST_WORDS:
            seen[source] = target
            if not _repeats(source, example.lexemes):
                yield example


def _example(kind: str, tree: Sentence) -> Example:
    lexemes, usages = contents(tree)
    return Example(english.sentence(tree), french.sentence(tree), kind, usages, lexemes)


def _has_both(example: Example, pairs: Iterable[Pair]) -> bool:
    """Whether both nouns of a pair are in the sentence."""
    nouns = {one.key for one in example.lexemes if isinstance(one, Noun)}
    return any(nouns.issuperset(pair) for pair in pairs)


def _repeats(source: str, words_used: frozenset[Lexeme]) -> bool:
    """Whether a noun or a name is in the sentence twice: my sister and her sister."""
    words = Counter(source.rstrip(".?").replace("'s", "").replace(",", "").split())
    for lexeme in words_used:
        if isinstance(lexeme, Noun) and sum(words[form] for form in set(lexeme.english)) > 1:
            return True
        if isinstance(lexeme, Name) and words[lexeme.key] > 1:
            return True
    return False


def _has_pair_by_chance(example: Example, held_out: Combinations) -> bool:
    """Whether verb and noun of a held-out pair are both in the sentence, though not together."""
    verbs = [verb_name(one) for one in example.lexemes if isinstance(one, Verb)]
    nouns = [one.key for one in example.lexemes if isinstance(one, Noun)]
    return any((verb, noun) in held_out.pairs for verb in verbs for noun in nouns)
