"""Sentences as trees, before they are words of either language."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from phrasebook.words import (
    Adjective,
    Adverb,
    Conjunction,
    Degree,
    Lexeme,
    Name,
    Noun,
    Number,
    Place,
    Preposition,
    Tense,
    Verb,
)

Determiner = Literal[
    "the", "a", "some", "bare", "generic", "this", "that", "number", "a lot of", "how many",
    "which", "every", "my", "your", "his", "her", "our", "their", "owner",
]  # fmt: skip
Negation = Literal["", "not", "never", "no longer"]
Comparison = Literal["", "more", "less", "as"]
Wh = Literal["where", "when", "why", "how"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Person, number and gender. `you` is plural to the verb, one man to everything else."""

    person: int = 3
    is_plural: bool = False
    is_feminine: bool = False

    @property
    def is_many(self) -> bool:
        """Whether adjectives and participles are plural."""
        return self.is_plural and self.person != 2

    @property
    def label(self) -> str:
        """The pronoun that stands for person and number: I, you, he, we, they."""
        singular, plural = {1: ("I", "we"), 2: ("you", "you"), 3: ("he", "they")}[self.person]
        return plural if self.is_plural else singular


@dataclass(frozen=True, slots=True)
class Pronoun:
    """A personal pronoun; `is_thing` makes he and she an it."""

    agreement: Agreement
    is_thing: bool = False
    antecedent: Noun | None = None  # in the same sentence


@dataclass(frozen=True, slots=True)
class Fixed:
    """A subject that is always the same words: everybody, who, it that rains."""

    english: str
    french: str
    is_negative: bool = False
    agreement: Agreement = Agreement()


@dataclass(frozen=True, slots=True)
class Person:
    """A person by name."""

    name: Name

    @property
    def agreement(self) -> Agreement:
        """Third person singular, with the gender of the name."""
        return Agreement(is_feminine=self.name.gender == "f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A noun with what stands around it."""

    noun: Noun
    determiner: Determiner
    is_plural: bool = False
    adjectives: tuple[Adjective, ...] = ()
    number: Number | None = None
    owner: Person | Described | None = None  # Paul's, my sister's
    content: Noun | None = None  # a cup of coffee
    relative: Relative | None = None

    @property
    def agreement(self) -> Agreement:
        """Third person, with the number it stands in and the gender of the noun."""
        return Agreement(is_plural=self.is_plural, is_feminine=self.noun.gender == "f")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two that are coordinated."""

    first: NounPhrase
    second: NounPhrase
    conjunction: Conjunction

    @property
    def agreement(self) -> Agreement:
        """Plural; first person if one of them is; feminine if both are."""
        both = self.first.agreement, self.second.agreement
        return Agreement(
            person=min(one.person for one in both),
            is_plural=True,
            is_feminine=all(one.is_feminine for one in both),
        )


NounPhrase = Pronoun | Fixed | Person | Described | Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """An adjective after to be, perhaps compared."""

    adjective: Adjective
    degree: Degree | None = None
    comparison: Comparison = ""
    than: NounPhrase | None = None


@dataclass(frozen=True, slots=True)
class Phrase:
    """A preposition and what it governs."""

    preposition: Preposition
    object: NounPhrase


@dataclass(frozen=True, slots=True)
class Locality:
    """In, to or from a city or a country."""

    relation: Literal["in", "to", "from"]
    place: Place


@dataclass(frozen=True, slots=True)
class Span:
    """Three days ago, in three days, for three days."""

    relation: Literal["ago", "in", "for"]
    number: Number
    unit: Noun


@dataclass(frozen=True, slots=True)
class Figure:
    """A clock time or a year in digits."""

    relation: Literal["at", "in"]
    value: int


Modifier = Adverb | Phrase | Locality | Span | Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """A subject and what is said of it; an infinitive's subject is that of its main verb."""

    subject: NounPhrase
    verb: Verb
    tense: Tense = "present"
    is_progressive: bool = False
    negation: Negation = ""
    adverb: Adverb | None = None
    object: NounPhrase | None = None
    recipient: NounPhrase | None = None
    recipient_is_first: bool = False  # gives his sister a book
    predicate: Quality | Described | None = None
    infinitive: Clause | None = None
    content: Clause | None = None  # a clause with that
    modifiers: tuple[Modifier, ...] = ()


@dataclass(frozen=True, slots=True)
class Relative:
    """A relative clause; its `role` is that of the noun in it."""

    role: Literal["subject", "object", "place"]
    clause: Clause


@dataclass(frozen=True, slots=True)
class Link:
    """A conjunction and the clause behind it."""

    conjunction: Conjunction
    clause: Clause


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Clauses that end in a full stop."""

    clause: Clause
    opener: Modifier | None = None
    condition: Link | None = None  # stands before the clause
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A clause that is asked; `asked` is a question word, or the noun phrase asked for.

    With "who" the subject is asked for, with "whom" and "what" the object.
    """

    asked: Literal["whether", "what", "whom", "who", "how old", "how much"] | Wh | Described
    clause: Clause


Sentence = Statement | Question


@dataclass(frozen=True, slots=True)
class Usage:
    """A verb as one clause uses it; an infinitive has no person."""

    verb: str
    tense: Tense
    person: str
    object: str = ""  # key of the noun, empty without one


NODES = (
    Pronoun, Person, Described, Pair, Quality, Phrase, Locality, Span, Clause, Relative, Link,
    Statement, Question,
)  # fmt: skip
FIELDS: dict[type, tuple[str, ...]] = {
    node: tuple(field.name for field in fields(node)) for node in NODES
}


def contents(sentence: Sentence) -> tuple[frozenset[Lexeme], tuple[Usage, ...]]:
    """Every word of the lexicon in a sentence, and every verb with tense, person and object."""
    lexemes: set[Lexeme] = set()
    usages: list[Usage] = []
    waiting: list[object] = [sentence]
    while waiting:
        part = waiting.pop()
        names = FIELDS.get(type(part))
        if names:
            waiting.extend([value for name in names if (value := getattr(part, name))])
        elif isinstance(part, tuple):
            waiting.extend(part)
        elif isinstance(part, Lexeme):
            lexemes.add(part)
        if isinstance(part, Clause):
            usages.extend(_usages(part))
    return frozenset(lexemes), tuple(usages)


def _usages(clause: Clause) -> list[Usage]:
    """One for each noun in the object, be it said, left to a pronoun or moved away."""
    person = "" if clause.tense == "infinitive" else clause.subject.agreement.label
    verb = verb_name(clause.verb)
    return [Usage(verb, clause.tense, person, noun) for noun in heads(clause.object) or ("",)]


def heads(phrase: NounPhrase | None) -> tuple[str, ...]:
    """The keys of the nouns that a phrase is about: of `two cups of tea`, cup and tea."""
    match phrase:
        case Described():
            return tuple(noun.key for noun in (phrase.noun, phrase.content) if noun)
        case Pronoun(antecedent=Noun() as antecedent):
            return (antecedent.key,)
        case Pair():
            return heads(phrase.first) + heads(phrase.second)
        case _:
            return ()


def verb_name(verb: Verb) -> str:
    """What tells a verb from another: know (connaître) from know (savoir)."""
    return f"{verb.key} ({verb.french})"
