"""From words to a written sentence."""

import unicodedata

ELIDED = {"je", "me", "te", "se", "le", "la", "ne", "de", "que"}
VOWEL_ENDINGS = "ae"


def starts_with_vowel(word: str) -> bool:
    """Whether French elides before the word; `*` before it says no."""
    return unicodedata.normalize("NFD", word[0].lower())[0] in "aeiouyhœ"


def elide(words: list[str]) -> list[str]:
    """The words with le, de, que … shortened and joined to the vowel behind them."""
    joined: list[str] = []
    for word in reversed(words):
        following = joined[-1] if joined else "*"
        if (word in ELIDED and starts_with_vowel(following)) or (
            word == "si" and following in {"il", "ils"}
        ):
            joined[-1] = word[:-1] + "'" + following
        else:
            joined.append(word)
    return joined[::-1]


def contract(preposition: str, words: list[str]) -> list[str]:
    """A French preposition before a phrase: à + le is au, de + les is des, not before l'."""
    *before, last = preposition.split()
    merged = {
        ("à", "le"): "au", ("à", "les"): "aux", ("de", "le"): "du", ("de", "les"): "des"
    }.get((last, words[0]))  # fmt: skip
    if merged and not (words[0] == "le" and starts_with_vowel(words[1])):
        return [*before, merged, *words[1:]]
    return [*before, last, *words]


def indefinite_article(words: list[str]) -> list[str]:
    """English words with `a` made `an` where the next one starts with a vowel sound."""
    vowel_sounds = [
        word[0] in "aeiouAEIOU" and not word.startswith(("uni", "use")) for word in words
    ]
    return [
        "an" if word == "a" and sound else word
        for word, sound in zip(words, [*vowel_sounds[1:], False], strict=True)
    ]


def write(words: list[str], end: str) -> str:
    """The sentence with its capital, its commas and its end."""
    text = " ".join(words).replace(" ,", ",").replace("*", "")
    return text[0].upper() + text[1:] + end
