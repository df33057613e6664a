"""What a word is: one entry of the lexicon, in both languages at once."""

from dataclasses import dataclass
from typing import Literal

Gender = Literal["m", "f"]
Tense = Literal["present", "imperfect", "past", "future", "infinitive"]
Forms = tuple[str, str]  # singular, plural


@dataclass(frozen=True, slots=True)
class Noun:
    """A common noun; `*` before a French form marks an aspirated h."""

    key: str
    group: str
    english: Forms
    french: Forms
    gender: Gender
    feminine: Forms | None = None  # of a profession, when a woman has it
    mass: bool = False
    number: Literal["both", "singular", "plural"] = "both"


@dataclass(frozen=True, slots=True)
class Adjective:
    """An adjective; French forms are masculine and feminine, each singular and plural."""

    key: str
    comparative: str  # empty where a comparison makes no sense
    masculine: Forms
    feminine: Forms
    before_vowel: str  # masculine singular: bel, nouvel, vieil
    position: Literal["before", "after", "predicate"]
    nouns: tuple[str, ...]  # keys of the nouns that it may stand with


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb with what it may be combined with."""

    key: str  # English base and particle; the identity of the lexeme
    base: str
    past: str
    gerund: str
    particle: str  # for, up, hungry …
    french: str  # infinitive, without se
    french_tail: str  # faim, besoin …
    preposition: str  # à, de or dans before the French object
    takes_etre: bool
    is_reflexive: bool
    subjects: tuple[str, ...]  # noun keys, or "person"
    objects: tuple[str, ...]  # noun keys
    complements: tuple[str, ...]  # adverb keys and places
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Adverb:
    """An adverb or a fixed adverbial."""

    key: str
    french: str
    # often: French after the finite verb, English before the verb; well: French the same,
    # English at the end; end and time: at the end in both
    position: Literal["often", "well", "end", "time"]
    times: tuple[Tense, ...] = ("present", "past", "future")
    is_habit: bool = False


@dataclass(frozen=True, slots=True)
class Name:
    """A person's name, the same in both languages."""

    key: str
    gender: Gender


@dataclass(frozen=True, slots=True)
class Place:
    """A city or a country; `article` is the one that its French name takes, if any."""

    key: str
    french: str
    article: str  # le, la, les or nothing


@dataclass(frozen=True, slots=True)
class Number:
    """A number word."""

    key: str
    french: str


@dataclass(frozen=True, slots=True)
class Preposition:
    """A preposition; a French one that ends in à or de contracts with the article."""

    key: str
    french: str


@dataclass(frozen=True, slots=True)
class Conjunction:
    """A word between two clauses."""

    key: str
    french: str


@dataclass(frozen=True, slots=True)
class Degree:
    """A word of degree before an adjective."""

    key: str
    french: str


Lexeme = (
    Noun | Adjective | Verb | Adverb | Name | Place | Number | Preposition | Conjunction | Degree
)


def names(text: str) -> frozenset[str]:
    """The keys in a text, `_` being a space inside one of them."""
    return frozenset(name.replace("_", " ") for name in text.split())


def category(lexeme: Lexeme) -> str:
    """The part of speech, in lower case: noun, verb …"""
    return type(lexeme).__name__.lower()
