"""The French verb with what clings to it: ne, pronouns, auxiliary, pas, adverb, participle."""

from phrasebook.conjugation import agree, future, imperfect, participle, present
from phrasebook.french_nouns import INDIRECT, REFLEXIVE, direct_pronoun, subject_pronoun
from phrasebook.orthography import VOWEL_ENDINGS
from phrasebook.syntax import Agreement, Clause, Fixed, Pronoun
from phrasebook.words import Adverb, Verb

SLOTS = {"I": 0, "he": 1, "we": 2, "you": 3, "they": 4}
NEGATIONS = {"not": ["pas"], "never": ["jamais"], "no longer": ["plus"], "": []}
ORDER = ("me", "vous", "nous", "se", "le", "la", "les", "lui", "leur", "y")


def is_compound(clause: Clause) -> bool:
    """Whether the tense has an auxiliary."""
    return clause.tense == "past"


def is_negative(clause: Clause) -> bool:
    """Whether the verb has ne."""
    return bool(clause.negation) or (
        isinstance(clause.subject, Fixed) and clause.subject.is_negative
    )


def verb_group(clause: Clause, *, moved: Agreement | None, is_inverted: bool) -> list[str]:
    """The verb of a clause and everything between it and its complements.

    Args:
        clause: what is said.
        moved: agreement of a direct object that stands before the clause.
        is_inverted: whether the subject pronoun follows the finite verb.
    """
    verb, subject = clause.verb, clause.subject.agreement
    adverbs = middle_adverbs(clause)
    if clause.tense == "infinitive":
        return [*_clitics(clause), verb.french, *adverbs, *verb.french_tail.split()]
    words = ["ne"] if is_negative(clause) else []
    words += _clitics(clause)
    finite = finite_form(verb, clause)
    words.append(_inverted(finite, subject) if is_inverted else finite)
    words += NEGATIONS[clause.negation] + adverbs
    if is_compound(clause):
        words.append(_participle(clause, moved))
    return words + verb.french_tail.split()


def middle_adverbs(clause: Clause) -> list[str]:
    """The adverbs that stand right behind the finite verb: souvent, bien."""
    adverbs = [clause.adverb.french] if clause.adverb else []
    return adverbs + [
        modifier.french
        for modifier in clause.modifiers
        if isinstance(modifier, Adverb) and modifier.position == "well"
    ]


def finite_form(verb: Verb, clause: Clause) -> str:
    """The form that person and number show on: of the verb, or of its auxiliary."""
    slot = SLOTS[clause.subject.agreement.label]
    if clause.tense == "future":
        return future(verb.french)[slot]
    if clause.tense == "imperfect":
        return imperfect(verb.french)[slot]
    if is_compound(clause):
        return present("être" if verb.takes_etre else "avoir")[slot]
    return present(verb.french)[slot]


def _inverted(finite: str, subject: Agreement) -> str:
    joint = "-t-" if finite[-1] in VOWEL_ENDINGS else "-"
    return finite + joint + subject_pronoun(subject)


def _clitics(clause: Clause) -> list[str]:
    clitics = [REFLEXIVE[clause.subject.agreement.label]] if clause.verb.is_reflexive else []
    if isinstance(clause.object, Pronoun):
        clitics.append(_object_clitic(clause.object, clause.verb))
    if isinstance(clause.recipient, Pronoun):
        clitics.append(INDIRECT[clause.recipient.agreement.label])
    if clause.verb.key == "be there":
        clitics.append("y")
    return sorted(clitics, key=ORDER.index)


def _object_clitic(pronoun: Pronoun, verb: Verb) -> str:
    if verb.preposition == "à":
        return INDIRECT[pronoun.agreement.label]
    return direct_pronoun(pronoun)


def _participle(clause: Clause, moved: Agreement | None) -> str:
    verb = clause.verb
    agreement = moved
    if verb.takes_etre:
        agreement = clause.subject.agreement
    elif isinstance(clause.object, Pronoun) and not verb.preposition:
        agreement = clause.object.agreement
    form = participle(verb.french)
    if agreement is None:
        return form
    return agree(form, feminine=agreement.is_feminine, plural=agreement.is_many)
