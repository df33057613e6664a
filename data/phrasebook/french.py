"""Trees written in French."""

from typing import assert_never

from phrasebook.french_nouns import adjective_form, core, strong_pronoun, subject_pronoun
from phrasebook.french_verbs import is_negative, verb_group
from phrasebook.orthography import contract, elide, write
from phrasebook.syntax import (
    Agreement,
    Clause,
    Described,
    Figure,
    Fixed,
    Link,
    Locality,
    Modifier,
    NounPhrase,
    Pair,
    Person,
    Phrase,
    Pronoun,
    Quality,
    Question,
    Relative,
    Sentence,
    Span,
)
from phrasebook.words import Adverb

QUESTION_WORDS = {
    "where": "où",
    "when": "quand",
    "why": "pourquoi",
    "how": "comment",
    "what": "que",
    "whom": "qui",
}
# verbs whose negation makes the infinitive's object negative too: il ne veut pas boire de thé
NEGATION_REACHES = {"vouloir", "pouvoir", "devoir", "savoir", "aimer"}
COMPARISONS = {"more": ["plus"], "less": ["moins"], "as": ["aussi"], "": []}


def sentence(tree: Sentence) -> str:
    """The sentence as it is written."""
    if isinstance(tree, Question):
        return write(elide(_question(tree)), " ?")
    words: list[str] = []
    if tree.opener:
        words += [*_modifier(tree.opener), ","]
    if tree.condition:
        words += [*_link(tree.condition), ","]
    words += _clause(tree.clause)
    if tree.link:
        words += _link(tree.link)
    return write(elide(words), ".")


def _link(link: Link) -> list[str]:
    conjunction = link.conjunction
    comma = [","] if conjunction.key in {"but", "so"} else []
    return [*comma, *conjunction.french.split(), *_clause(link.clause)]


def _question(tree: Question) -> list[str]:
    clause = tree.clause
    has_pronoun = isinstance(clause.subject, Pronoun)
    match tree.asked:
        case "who":
            return _clause(clause)
        case "whether":
            return ["est-ce", "que", *_clause(clause)]
        case "how old" | "how much":
            words = ["quel", "âge"] if tree.asked == "how old" else ["combien"]
            words += verb_group(clause, moved=None, is_inverted=has_pronoun)
            return words if has_pronoun else words + _noun_phrase(clause.subject)
        case "what" if not has_pronoun:
            return ["qu'est-ce", "que", *_clause(clause)]
        case "where" if clause.verb.french == "être" and not has_pronoun:
            verb = verb_group(clause, moved=None, is_inverted=False)
            return ["où", *verb, *_noun_phrase(clause.subject)]
        case Described() as asked:
            return [*_noun_phrase(asked), *_asked(clause, has_pronoun, moved=asked.agreement)]
        case asked:
            return [QUESTION_WORDS[asked], *_asked(clause, has_pronoun)]


def _asked(clause: Clause, has_pronoun: bool, moved: Agreement | None = None) -> list[str]:
    """The rest of a question: a pronoun is inverted, a noun follows est-ce que."""
    if has_pronoun:
        return _clause(clause, moved=moved, is_inverted=True)
    return ["est-ce", "que", *_clause(clause, moved=moved)]


def _clause(
    clause: Clause,
    *,
    moved: Agreement | None = None,
    without_subject: bool = False,
    is_inverted: bool = False,
    is_negated: bool = False,
) -> list[str]:
    """The words of a clause.

    Args:
        clause: what is said.
        moved: agreement of the object that stands before the clause and not in it.
        without_subject: in an infinitive and after the relative qui.
        is_inverted: whether the subject pronoun follows the verb.
        is_negated: whether a verb above this infinitive is negated.
    """
    is_negated = is_negated or is_negative(clause)
    words = [] if without_subject or is_inverted else _noun_phrase(clause.subject)
    words += verb_group(clause, moved=moved, is_inverted=is_inverted)
    if clause.object and not moved and not isinstance(clause.object, Pronoun):
        words += _object(clause, clause.object, is_negated=is_negated)
    if clause.recipient and not isinstance(clause.recipient, Pronoun):
        words += governed("à", clause.recipient)
    if clause.predicate:
        words += _predicate(clause, clause.predicate)
    if clause.infinitive:
        words += clause.verb.preposition.split()
        reaches = is_negated and clause.verb.french in NEGATION_REACHES
        words += _clause(clause.infinitive, without_subject=True, is_negated=reaches)
    if clause.content:
        words += ["que", *_clause(clause.content)]
    for modifier in clause.modifiers:
        if not (isinstance(modifier, Adverb) and modifier.position == "well"):
            words += _modifier(modifier)
    return words


def _object(clause: Clause, phrase: NounPhrase, *, is_negated: bool) -> list[str]:
    if clause.verb.preposition:
        return governed(clause.verb.preposition, phrase)
    if clause.verb.french_tail:  # avoir besoin, faire chaud: no object but behind a preposition
        raise AssertionError(clause.verb.key)
    return _noun_phrase(phrase, is_negated=is_negated and clause.verb.french != "être")


def _predicate(clause: Clause, predicate: Quality | Described) -> list[str]:
    agreement = clause.subject.agreement
    if isinstance(predicate, Described) and predicate.determiner not in {"a", "bare"}:
        return _noun_phrase(predicate)
    if isinstance(predicate, Described):  # a profession, without an article
        noun = predicate.noun
        forms = noun.feminine if agreement.is_feminine and noun.feminine else noun.french
        return forms[agreement.is_many].split()
    words = predicate.degree.french.split() if predicate.degree else []
    words += COMPARISONS[predicate.comparison]
    words.append(adjective_form(predicate.adjective, agreement))
    return words + (["que", *_strong(predicate.than)] if predicate.than else [])


def governed(preposition: str, phrase: NounPhrase) -> list[str]:
    """A preposition and the phrase behind it, contracted."""
    after_de = preposition.split()[-1] in {"de", "sans"}  # swallow du and des
    if isinstance(phrase, Described):
        return contract(preposition, _described(phrase, after_de=after_de))
    return [*preposition.split(), *_strong(phrase)]


def _strong(phrase: NounPhrase) -> list[str]:
    if isinstance(phrase, Pronoun):
        return [strong_pronoun(phrase.agreement)]
    return _noun_phrase(phrase)


def _noun_phrase(phrase: NounPhrase, *, is_negated: bool = False) -> list[str]:
    match phrase:
        case Pronoun():
            return [subject_pronoun(phrase.agreement)]
        case Fixed():
            return phrase.french.split()
        case Person():
            return [phrase.name.key]
        case Pair():
            first = _noun_phrase(phrase.first, is_negated=is_negated)
            return [*first, phrase.conjunction.french, *_strong(phrase.second)]
        case Described():
            return _described(phrase, is_negated=is_negated)
        case _:
            assert_never(phrase)


def _described(phrase: Described, *, is_negated: bool = False, after_de: bool = False) -> list[str]:
    words = core(phrase, is_negated=is_negated, after_de=after_de)
    if phrase.content:
        words += ["de", *phrase.content.french[not phrase.content.mass].split()]
    if phrase.owner:
        words += governed("de", phrase.owner)
    return words + (_relative(phrase.relative, phrase) if phrase.relative else [])


def _relative(relative: Relative, antecedent: Described) -> list[str]:
    match relative.role:
        case "subject":
            return ["qui", *_clause(relative.clause, without_subject=True)]
        case "object":
            return ["que", *_clause(relative.clause, moved=antecedent.agreement)]
        case "place":
            return ["où", *_clause(relative.clause)]


def _modifier(modifier: Modifier) -> list[str]:
    match modifier:
        case Adverb():
            return modifier.french.split()
        case Phrase():
            return governed(modifier.preposition.french, modifier.object)
        case Locality():
            return _locality(modifier)
        case Span():
            opening = {"ago": ["il", "y", "a"], "in": ["dans"], "for": ["pendant"]}
            unit = modifier.unit.french[1]
            return [*opening[modifier.relation], modifier.number.french, unit]
        case Figure(relation="at"):
            return ["à", str(modifier.value), "heures"]
        case Figure():
            return ["en", str(modifier.value)]
        case _:
            assert_never(modifier)


def _locality(locality: Locality) -> list[str]:
    place = locality.place
    if not place.article:
        return ["de" if locality.relation == "from" else "à", place.french]
    if place.article == "la":
        return ["de" if locality.relation == "from" else "en", place.french]
    return contract("de" if locality.relation == "from" else "à", [place.article, place.french])
