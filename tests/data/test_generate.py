"""The sample corpus is what its generator writes and what its README promises."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
SIZES = {"train": 34_000, "valid": 1_000, "test": 1_000, "combinations": 480, "pronouns": 480}
Lines = Callable[[str], tuple[str, ...]]


@pytest.mark.torture
def test_files_on_disk_are_what_the_generator_writes(project: SimpleNamespace) -> None:
    for name, text in project.generate.texts(project.corpus).items():
        assert (DATA / name).read_bytes() == text, f"{name}: run python data/generate.py"


@pytest.mark.torture
def test_check_writes_nothing_and_sets_the_exit_code(
    project: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project.generate, "build_corpus", lambda: project.corpus)

    assert project.generate.main(["--check"]) == 0
    assert project.generate.main(["--check", "--output", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []
    assert project.generate.main(["--output", str(tmp_path)]) == 0
    assert project.generate.main(["--check", "--output", str(tmp_path)]) == 0
    (tmp_path / "test.fr").write_text("Bonjour.\n", encoding="utf-8")
    assert project.generate.main(["--check", "--output", str(tmp_path)]) == 1


@pytest.mark.parametrize("name", SIZES)
def test_both_sides_have_the_promised_number_of_lines(name: str, read_lines: Lines) -> None:
    assert len(read_lines(f"{name}.en")) == len(read_lines(f"{name}.fr")) == SIZES[name]


@pytest.mark.parametrize("name", [f"{name}.{side}" for name in SIZES for side in ("en", "fr")])
def test_text_is_clean(name: str, read_lines: Lines) -> None:
    text = (DATA / name).read_bytes().decode("utf-8")

    assert text.endswith("\n")
    assert unicodedata.is_normalized("NFC", text)
    assert not re.search(r"[\t\r\u00a0\u2019\ufeff*_]|  |^ | $|\n\n", text, re.MULTILINE)
    for line in read_lines(name):
        assert line[0].isupper()
        assert line.endswith((".", "?"))
        assert re.fullmatch(r"[^.?]*[.?]", line)
        assert line.endswith(" ?") == (line.endswith("?") and name.endswith("fr"))


def test_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.glob("*.en")) < 2_100_000
    assert sum(path.stat().st_size for path in DATA.glob("*.fr")) < 2_100_000


# the sets


def test_no_source_line_occurs_twice_anywhere(read_lines: Lines) -> None:
    counts = Counter(line for name in SIZES for line in read_lines(f"{name}.en"))

    assert counts.most_common(1)[0][1] == 1


def test_translation_is_a_function_of_the_source_whatever_its_case(read_lines: Lines) -> None:
    translations: dict[str, str] = {}
    for name in SIZES:
        for source, target in zip(read_lines(f"{name}.en"), read_lines(f"{name}.fr"), strict=True):
            assert translations.setdefault(source.lower(), target) == target


def test_sentences_have_three_to_sixteen_words(read_lines: Lines) -> None:
    lengths = [len(line.split()) for line in read_lines("train.en")]

    assert min(lengths) >= 3
    assert max(lengths) <= 16
    assert 7 <= sum(lengths) / len(lengths) <= 10


@pytest.mark.torture
def test_every_lexeme_is_learnable(project: SimpleNamespace) -> None:
    category = project.words.category
    counts = Counter(
        key
        for example in project.corpus.sets["train"]
        for key in {(category(one), one.key, one.french if category(one) == "verb" else "")
                    for one in example.lexemes}
    )  # fmt: skip
    counts = Counter({key: count for key, count in counts.items() if not key[1].isdigit()})
    assert len(counts) >= 400
    assert min(counts.values()) >= 10, counts.most_common()[-5:]


@pytest.mark.torture
def test_every_lexeme_of_the_lexicon_is_used(project: SimpleNamespace) -> None:
    used = {
        (project.words.category(one), one.key)
        for example in project.corpus.sets["train"]
        for one in example.lexemes
    }
    listed: dict[str, set[str]] = {
        "noun": set(project.nouns.NOUNS),
        "adjective": set(project.modifiers.ADJECTIVES),
        "adverb": set(project.modifiers.ADVERBS),
        "name": set(project.modifiers.NAMES),
        "place": set(project.modifiers.PLACE_NAMES),
        "number": set(project.modifiers.NUMBERS),
        "preposition": set(project.modifiers.PREPOSITION_WORDS),
        "conjunction": set(project.modifiers.CONJUNCTION_WORDS),
        "degree": set(project.modifiers.DEGREE_WORDS),
        "verb": {verb.key for verb in project.verbs.ALL_VERBS},
    }
    missing = {
        kind: keys - {key for one, key in used if one == kind} for kind, keys in listed.items()
    }

    assert not any(missing.values()), missing


def test_readme_quotes_lines_of_the_corpus_and_their_number(read_lines: Lines) -> None:
    pairs = {
        pair
        for name in SIZES
        for pair in zip(read_lines(f"{name}.en"), read_lines(f"{name}.fr"), strict=True)
    }
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in readme.split("\n") if row.startswith("| ")]
    examples = [(row[1], row[2]) for row in rows if row[1][-1] in ".?"]

    assert len(examples) > 20
    assert set(examples) <= pairs
    for name, size in SIZES.items():
        assert [f"`{name}.en`, `{name}.fr`", str(size)] in [row[:2] for row in rows]
