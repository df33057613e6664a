"""French noun phrases without their clauses: determiner, adjectives, noun."""

from phrasebook.orthography import starts_with_vowel
from phrasebook.syntax import Agreement, Described, Determiner, Pronoun
from phrasebook.words import Adjective

SUBJECTS = {"I": "je", "you": "vous", "we": "nous"}
STRONG = {"I": "moi", "you": "vous", "we": "nous"}
DIRECT = {"I": "me", "you": "vous", "we": "nous", "they": "les"}
INDIRECT = {"I": "me", "you": "vous", "we": "nous", "they": "leur", "he": "lui"}
REFLEXIVE = {"I": "me", "you": "vous", "we": "nous", "they": "se", "he": "se"}
# masculine, feminine, plural
INFLECTED: dict[str, tuple[str, str, str]] = {
    "the": ("le", "la", "les"),
    "generic": ("le", "la", "les"),
    "owner": ("le", "la", "les"),
    "my": ("mon", "ma", "mes"),
    "his": ("son", "sa", "ses"),
    "her": ("son", "sa", "ses"),
    "our": ("notre", "notre", "nos"),
    "your": ("votre", "votre", "vos"),
    "their": ("leur", "leur", "leurs"),
    "every": ("chaque", "chaque", "chaque"),
}
POSSESSIVES = ("ma", "sa")  # mon amie, son école


def subject_pronoun(agreement: Agreement) -> str:
    """The form of je, il … before a verb."""
    if agreement.label in SUBJECTS:
        return SUBJECTS[agreement.label]
    return ("elle" if agreement.is_feminine else "il") + ("s" if agreement.is_plural else "")


def strong_pronoun(agreement: Agreement) -> str:
    """The form of moi, lui … after a preposition."""
    if agreement.label in STRONG:
        return STRONG[agreement.label]
    if agreement.is_feminine:
        return "elles" if agreement.is_plural else "elle"
    return "eux" if agreement.is_plural else "lui"


def direct_pronoun(pronoun: Pronoun) -> str:
    """The form of me, le … of a direct object, before a verb."""
    return DIRECT.get(pronoun.agreement.label, "la" if pronoun.agreement.is_feminine else "le")


def core(phrase: Described, *, is_negated: bool = False, after_de: bool = False) -> list[str]:
    """Determiner, adjectives and noun.

    Args:
        phrase: its owner, content and relative clause are left to the caller.
        is_negated: under a negation, where du, des and un become de.
        after_de: behind the preposition de, which swallows du and des.
    """
    words = phrase.noun.french[phrase.is_plural].split()
    for adjective in reversed([one for one in phrase.adjectives if one.position == "before"]):
        words.insert(0, adjective_form(adjective, phrase.agreement, words[0]))
    for adjective in phrase.adjectives:
        if adjective.position != "before":
            words.append(adjective_form(adjective, phrase.agreement))
    if phrase.determiner in {"a", "some", "bare"}:
        return _indefinite(phrase, words, is_negated=is_negated, after_de=after_de) + words
    return _determiner(phrase, words[0]) + words


def adjective_form(adjective: Adjective, agreement: Agreement, following: str = "*") -> str:
    """The adjective as it agrees, and as the word that follows asks for."""
    if agreement.is_feminine:
        return adjective.feminine[agreement.is_many]
    if not agreement.is_many and starts_with_vowel(following):
        return adjective.before_vowel
    return adjective.masculine[agreement.is_many]


def _indefinite(
    phrase: Described, words: list[str], *, is_negated: bool, after_de: bool
) -> list[str]:
    if phrase.determiner == "a":
        return ["de"] if is_negated else ["une" if phrase.agreement.is_feminine else "un"]
    if phrase.noun.group == "language" or after_de:
        return []
    if is_negated:
        return ["de"]
    if phrase.is_plural:
        has_adjective_first = any(one.position == "before" for one in phrase.adjectives)
        return ["de"] if has_adjective_first else ["des"]
    if phrase.agreement.is_feminine:
        return ["de", "la"]
    return ["de", "le"] if starts_with_vowel(words[0]) else ["du"]


def _determiner(phrase: Described, following: str) -> list[str]:
    agreement = phrase.agreement
    determiner: Determiner = phrase.determiner
    if phrase.number:
        return [phrase.number.french]
    if determiner in {"this", "that"}:
        if agreement.is_plural:
            return ["ces"]
        return [
            "cette" if agreement.is_feminine else "cet" if starts_with_vowel(following) else "ce"
        ]
    if determiner == "which":
        return [("quelle" if agreement.is_feminine else "quel") + "s" * agreement.is_plural]
    if determiner in {"a lot of", "how many"}:
        return ["beaucoup" if determiner == "a lot of" else "combien", "de"]
    masculine, feminine, plural = INFLECTED[determiner]
    if agreement.is_plural:
        return [plural]
    if agreement.is_feminine and not (feminine in POSSESSIVES and starts_with_vowel(following)):
        return [feminine]
    return [masculine]
