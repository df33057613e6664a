"""Measure how well sentence ends are found: ours, sentencex and pysbd.

`pip install sentencex pysbd`, then `python tests/bench/sentence_ends.py`. Each language has 20
lines of two to five sentences, drawn by a seed from those of `tests/text/sentences.txt`; an
end is found if the place behind a sentence's last mark is.
"""

import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tfm_cli.text.sentences import sentence_ends  # noqa: E402 - the path comes first

LINES = 20
FILES = ("sentences.txt", "unseen_sentences.txt")
CYRILLIC = ("ru", "uk", "bg")
LATIN = ("en", "de", "fr", "es", "it", "pt", "nl", "pl")

Ends = Callable[[str, str], set[int]]  # of a language and a line


def drawn(path: Path) -> Iterator[tuple[str, str, set[int]]]:
    """Yield the language, text and ends of each line."""
    for block in path.read_text("utf-8").split("\n[")[1:]:
        language, *sentences = block.rstrip("\n").split("\n")
        language = language.rstrip("]")
        draw, pool = random.Random(f"1{language}"), list[str]()
        for _ in range(LINES):
            text, ends = "", set[int]()
            for _ in range(draw.randint(2, 5)):
                if not pool:
                    pool = draw.sample(sentences, len(sentences))
                sentence = pool.pop()
                if text:
                    ends.add(len(text))
                    text += "" if sentence.startswith("~") else " "
                text += sentence.removeprefix("~")
            yield language, text, ends


def ends_of(text: str, parts: list[str]) -> set[int]:
    """Return where the parts end, but for the last."""
    at, ends = 0, set()
    for part in filter(None, map(str.strip, parts)):
        at = text.index(part, at) + len(part)
        ends.add(at)
    return ends - {len(text)}


def systems() -> dict[str, Ends]:
    """Return what is compared, by name."""
    found: dict[str, Ends] = {"ours": lambda _, text: set(sentence_ends(text))}
    try:
        import pysbd
        import sentencex
    except ImportError:
        return found
    segmenters: dict[str, Any] = {}

    def by_pysbd(language: str, text: str) -> set[int]:
        if language not in segmenters:
            try:
                segmenters[language] = pysbd.Segmenter(language=language, clean=False)
            except ValueError:  # an unknown language
                segmenters[language] = pysbd.Segmenter(language="en", clean=False)
        return ends_of(text, segmenters[language].segment(text))

    def by_sentencex(language: str, text: str) -> set[int]:
        return ends_of(text, sentencex.segment(language, text))

    def by_all_of_script(_: str, text: str) -> set[int]:
        languages = CYRILLIC if any("а" <= letter <= "я" for letter in text) else LATIN
        return set.intersection(*(by_sentencex(each, text) for each in languages))

    return found | {
        "sentencex, language given": by_sentencex,
        "sentencex, as English": lambda _, text: by_sentencex("en", text),
        "sentencex, all languages of the script agree": by_all_of_script,
        "pysbd, language given": by_pysbd,
        "pysbd, as English": lambda _, text: by_pysbd("en", text),
    }


def main() -> None:
    """Print a row for each system and file."""
    for name in FILES:
        lines = list(drawn(ROOT / "tests" / "text" / name))
        print(f"{name}: {len(lines)} lines, {sum(len(ends) for *_, ends in lines)} ends")
        for system, find in systems().items():
            right, wrong, missed = 0, 0, 0
            began = time.perf_counter()
            for language, text, ends in lines:
                found = find(language, text)
                right += len(ends & found)
                wrong += len(found - ends)
                missed += len(ends - found)
            milliseconds = 1000 * (time.perf_counter() - began) / len(lines)
            print(
                f"  {system:44}  F1 {200 * right / (2 * right + wrong + missed):5.1f}"
                f"  precision {100 * right / (right + wrong):5.1f}"
                f"  recall {100 * right / (right + missed):5.1f}  {milliseconds:.3f} ms a line"
            )


if __name__ == "__main__":
    main()
