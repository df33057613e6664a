import contextlib
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import TinyCorpus, invoke
from tfm_cli.corpus.check import inspection
from tfm_cli.corpus.check.inspection import (
    CorpusInspection,
    FileInspection,
    Occurrences,
    inspect_corpus,
    paired_windows,
)
from tfm_cli.corpus.check.statistics import LineHashes
from tfm_cli.corpus.parallel_text import read_pairs
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.errors import DataError
from tfm_cli.model_directory.config_file import load_named_tokenizers
from tfm_cli.tokenizer.pair import TokenizerPair

LINES = ["", " ", "one", " one ", "one two", "\u3000", "drei", "a b c d e f g h i j k l", "\u00ad"]
sides = st.lists(st.sampled_from(LINES), max_size=30)
hostile = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return str(path)


@pytest.fixture(scope="module")
def tokenizers(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> TokenizerPair:
    """Return a character tokenizer that lacks some characters of the lines."""
    prefix = tmp_path_factory.mktemp("tokenizer") / "m"
    arguments = [
        "tokenize", "train", "-i", tiny_corpus.path("train.en"), "--model-prefix", str(prefix),
        "--vocab-size", "25", "--model-type", "char", "--no-byte-fallback", "-q",
        "--no-hard-vocab-limit",
    ]  # fmt: skip
    assert invoke(arguments).code == 0
    return load_named_tokenizers(Path(f"{prefix}.model"))


def first(path: str, numbers: list[int]) -> Occurrences:
    return Occurrences(len(numbers), path, numbers[0]) if numbers else Occurrences()


@hostile
@given(sides, sides)
def test_counts_equal_those_of_single_pairs(
    tmp_path: Path, sources: list[str], targets: list[str]
) -> None:
    paths = write(tmp_path / "s", sources), write(tmp_path / "t", targets)

    actual = inspect_corpus("train", ([paths[0]], [paths[1]]), None, max_length=256)

    pairs = [(s.strip(), t.strip()) for s, t in zip(sources, targets, strict=False)]
    text = [pair for pair in pairs if all(pair)]
    assert (actual.pairs, actual.with_text, actual.usable) == (len(pairs), len(text), len(text))
    kinds = {"source": (False, True), "target": (True, False), "both": (False, False)}
    for kind, expected in kinds.items():
        numbers = [n for n, (s, t) in enumerate(pairs, 1) if (bool(s), bool(t)) == expected]
        assert actual.blank[kind] == first(paths[0], numbers)
    same = [n for n, (s, t) in enumerate(pairs, 1) if s and s == t]
    assert actual.identical == first(paths[0], same)
    words = [[len(line.split()) for line in pair] for pair in text]
    for side in (0, 1):
        assert actual.lengths[side].total == sum(counts[side] for counts in words)
    assert actual.ratios.beyond(9) == sum(max(counts) > 9 * min(counts) for counts in words)
    assert [facts.lines for facts in actual.files[0]] == [len(sources), len(targets)]


@pytest.mark.slow
@hostile
@given(st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(LINES)), max_size=20))
def test_usable_pairs_are_those_of_the_training_store(
    tmp_path: Path, tokenizers: TokenizerPair, pairs: list[tuple[str, str]]
) -> None:
    paths = (
        [write(tmp_path / "s", [s for s, _ in pairs])],
        [write(tmp_path / "t", [t for _, t in pairs])],
    )

    actual = inspect_corpus("train", paths, tokenizers, max_length=9)

    try:
        store = CorpusStore.build(read_pairs(*paths), tokenizers, max_length=9, name="text")
    except DataError:
        assert actual.usable == 0
    else:
        assert actual.usable == len(store)
        assert actual.too_long.count == store.dropped["too long"]
    assert actual.unit == "tokens"
    assert actual.unknown is not None
    texts = [pair for pair in pairs if pair[0].strip() and pair[1].strip()]
    for side, unknown in enumerate(actual.unknown):
        ids = tokenizers.source.encode([pair[side] for pair in texts])
        assert actual.lengths[side].total == sum(map(len, ids))
        assert unknown.count == sum(line.count(tokenizers.source.unk_id) for line in ids)


def test_each_side_uses_its_own_tokenizer(tmp_path: Path, tokenizers: TokenizerPair) -> None:
    arguments = [
        "tokenize", "train", "--model-prefix", str(tmp_path / "w"), "--vocab-size", "20",
        "--model-type", "word", "--no-byte-fallback", "-q", "--no-hard-vocab-limit",
    ]  # fmt: skip
    assert invoke(arguments, "one two\n" * 20).code == 0
    words = load_named_tokenizers(tmp_path / "w.model").target
    path = write(tmp_path / "text", ["one two", "two", "three"])

    pair = TokenizerPair(tokenizers.source, words)
    actual = inspect_corpus("train", ([path], [path]), pair, max_length=256)

    assert actual.unknown is not None
    assert [counts.total for counts in actual.lengths] == [18, 4]  # with the blanks before words
    assert [unknown.count for unknown in actual.unknown] == [0, 1]
    assert actual.unknown[1].commonest(9) == [("h", 1), ("r", 1)]


def test_positions_name_file_and_line_of_several_files(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"s{n}", lines) for n, lines in enumerate([["a", "b"], ["c", ""]])]
    targets = [write(tmp_path / f"t{n}", lines) for n, lines in enumerate([["x", "y"], ["c", "z"]])]

    actual = inspect_corpus("train", (sources, targets), None, max_length=256)

    assert actual.identical == Occurrences(1, sources[1], 1)
    assert actual.blank["source"] == Occurrences(1, sources[1], 2)
    assert actual.pairs == 4


def test_bad_file_does_not_stop_the_rest(tmp_path: Path) -> None:
    good = write(tmp_path / "good", ["one", "two", "three"])
    (tmp_path / "bad").write_bytes(b"eins\n\xff\ndrei\n")
    sources = [str(tmp_path / "none"), str(tmp_path / "bad"), good]

    actual = inspect_corpus("train", (sources, [good] * 3), None, max_length=256)

    assert actual.files[0][0].problem
    assert actual.files[0][1].lines == 3  # the other side was read to its end
    assert actual.files[1][0].invalid == Occurrences(1, sources[1], 2)
    assert actual.pairs == 6


def test_progress_runs_from_zero_to_one(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, ["line"] * 9000) for name in "ab"]
    reports: list[tuple[int, float]] = []

    inspect_corpus(
        "train", (paths, paths), None, max_length=256,
        progress=lambda pairs, share: reports.append((pairs, share)),
    )  # fmt: skip

    assert reports == sorted(reports)
    assert reports[-1] == (18_000, 1.0)
    assert len(reports) == 6


def test_at_most_one_window_of_each_side_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "WINDOW_LINES", 8)
    paths = write(tmp_path / "s", ["a"] * 1000), write(tmp_path / "t", ["b"] * 700)
    handed = [0, 0]

    class Counting(FileInspection):
        def window(self) -> list[str]:
            lines = super().window()
            handed[self.facts.path.endswith("t")] += len(lines)
            return lines

    seen = 0
    with contextlib.ExitStack() as closing:
        for sources, targets in paired_windows(*(Counting(path, closing) for path in paths)):
            assert len(sources) == len(targets)
            assert max(handed) - seen <= 8
            seen += len(sources)

    assert (seen, handed) == (700, [1000, 700])


def peak(paths: tuple[list[str], list[str]]) -> int:
    tracemalloc.start()
    inspect_corpus("train", paths, None, max_length=256).hashes.close()
    actual = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return actual


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "WINDOW_LINES", 64)
    monkeypatch.setattr(inspection, "LineHashes", lambda: LineHashes(max_in_memory=1500))
    lines = [f"number {number} of the lines" for number in range(12_000)]
    few = [write(tmp_path / "few", lines[:4000])], [write(tmp_path / "few2", lines[:4000])]
    many = [write(tmp_path / "many", lines)], [write(tmp_path / "many2", lines)]

    # Both are longer than what is read of a file at once.
    assert peak(many) < 1.2 * peak(few)


def test_lengths_are_in_words_without_a_tokenizer() -> None:
    assert CorpusInspection("train", None, max_length=1).unit == "words"
