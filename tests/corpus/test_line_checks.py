import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.corpus.encoding import encode_block
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.line_checks import LinePosition, RoundTrip, hint_for_changed, hint_for_unknown
from tfm_cli.corpus.parallel_text import Block
from tfm_cli.corpus.prepare import prepare
from tfm_cli.corpus.sources import aligned_files
from tfm_cli.corpus.store import open_store
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

LINES = ["one two", "one ½ km²", "a  b", "zwölf", "one ▁ two", "½"]


def learn(rule: str, *, byte_fallback: bool = True, model_type: str = "char") -> Tokenizer:
    settings = TokenizerConfig(
        vocab_size=300, model_type=model_type, normalization_rule_name=rule,
        byte_fallback=byte_fallback,
    )  # fmt: skip
    return Tokenizer(train_tokenizer(["one two km a b"], settings, seed=1, soft_limit=True))


def counted(tokenizer: Tokenizer, lines: Sequence[str] = LINES) -> RoundTrip:
    trip = RoundTrip()
    trip.add(tokenizer, lines, tokenizer.encode(lines), position=lambda index: (3, 100 + index))
    return trip


def test_lines_that_normalization_changes_are_counted_with_the_first_change() -> None:
    trip = counted(learn("nfkc"))

    assert (trip.lines, trip.changed, trip.unknown) == (6, 3, 0)
    assert trip.first_changed == LinePosition(3, 101, "one ½ km²", "one 1⁄2 km2")


def test_without_normalization_only_the_blank_symbol_is_changed() -> None:
    trip = counted(learn("identity"))

    assert (trip.changed, trip.first_changed) == (1, LinePosition(3, 104, "one ▁ two", "one two"))


def test_unknown_pieces_are_counted_with_the_first() -> None:
    tokenizer = learn("identity", byte_fallback=False)
    trip = counted(tokenizer)

    ids = tokenizer.encode(LINES)
    assert trip.pieces == sum(map(len, ids))
    assert trip.unknown == sum(line.count(tokenizer.unk_id) for line in ids) > 0
    assert trip.first_unknown == LinePosition(3, 101, "½")
    assert trip.changed == 4
    assert trip.is_explained(tokenizer)


def test_language_tag_does_not_count_as_a_change() -> None:
    model = learn("nfkc", byte_fallback=False)
    vocabulary = Vocabulary(("</s>", "<unk>", *model.pieces[4:], ">>deu<<", "<pad>"))
    tokenizer = Tokenizer(model.model_bytes, vocabulary)
    lines = [">>deu<< one", ">>deu<< one ½", "one", ">>deu<< one 日"]

    trip = counted(tokenizer, lines)

    assert (trip.changed, trip.unknown) == (2, 2)


def test_excerpt_of_a_long_line_shows_the_difference() -> None:
    trip = counted(learn("nfkc"), [f"{'a b ' * 99}²{' b a' * 99}"])

    assert trip.first_changed == LinePosition(3, 100, "a b a b ² b a b a", "a b a b 2 b a b a")


def test_parts_add_up_to_the_whole() -> None:
    tokenizer = learn("nfkc", byte_fallback=False)
    whole, parts = RoundTrip(), RoundTrip()
    for index, line in enumerate(LINES):
        encoded = tokenizer.encode([line])
        one = RoundTrip()
        for trip in (one, whole):
            trip.add(tokenizer, [line], encoded, position=lambda _, index=index: (0, index))  # type: ignore[misc]
        parts.merge(one)

    assert parts == whole
    assert RoundTrip.from_json(json.loads(json.dumps(parts.to_json()))) == parts
    assert RoundTrip.from_json(json.loads(json.dumps(RoundTrip().to_json()))) == RoundTrip()


GOOD = RoundTrip(1, 2, 1, 1, LinePosition(0, 1, "a", "b"), LinePosition(0, 1, "a")).to_json()


@pytest.mark.parametrize(
    "table",
    [
        {}, [], None, {"lines": "x"}, {**GOOD, "more": 1}, {**GOOD, "changed": None},
        {**GOOD, "lines": -1}, {**GOOD, "pieces": 1.0}, {**GOOD, "unknown": True},
        {**GOOD, "lines": 1 << 62}, {**GOOD, "first_changed": [1, 2]},
        {**GOOD, "first_changed": [0, 1, "a", 5]}, {**GOOD, "first_changed": [-1, 1, "a", "b"]},
        {**GOOD, "first_unknown": [0, 1, "a" * 25, ""]}, {**GOOD, "first_unknown": "abcd"},
    ],
)  # fmt: skip
def test_malformed_table_is_refused(table: object) -> None:
    RoundTrip.from_json(GOOD)
    with pytest.raises(ValueError, match=r"other counts|is not a count|is not the position"):
        RoundTrip.from_json(table)


def test_position_is_that_of_the_file_even_if_lines_are_dropped() -> None:
    tokenizers = TokenizerPair.joint(learn("nfkc"))
    source = b"one\n\xff\n\none\n" + "½\n½\n".encode()
    target = b"one\none\none\none\none\n" + "km²\n".encode()
    block = Block(1, "lines", ("s", "t"), 7, (False, False), (source, target))

    actual = encode_block(block, tokenizers, Filters(9, bad_utf8="drop-pair"), threads=1)

    assert [trip.lines for trip in actual.round_trips] == [4, 4]
    assert actual.round_trips[0].first_changed == LinePosition(1, 12, "½", "1⁄2")
    assert actual.round_trips[1].first_changed == LinePosition(1, 13, "km²", "km2")


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_are_stored_with_the_prepared_text(workers: int, tmp_path: Path) -> None:
    lines = [f"one {number}" for number in range(40_000)]
    lines[30_000] = "two ½"
    for name in ("s", "t"):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    files = aligned_files([str(tmp_path / "s")], [str(tmp_path / "t")])

    prepare(files, TokenizerPair.joint(learn("nfkc")), Filters(9), tmp_path / "store",
            workers=workers)  # fmt: skip

    first = LinePosition(0, 30_001, "two ½", "two 1⁄2")
    for trip in open_store(tmp_path / "store", ()).round_trips:
        assert (trip.lines, trip.changed, trip.first_changed) == (40_000, 1, first)


def test_store_without_counts_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("one\n", encoding="utf-8")
    files = aligned_files([str(tmp_path / "s")], [str(tmp_path / "s")])
    prepare(files, TokenizerPair.joint(learn("nfkc")), Filters(9), tmp_path / "store", workers=0)
    path = tmp_path / "store" / "store.json"
    facts = json.loads(path.read_bytes())
    del facts["round_trips"]
    path.write_text(json.dumps(facts), encoding="utf-8")

    store = open_store(tmp_path / "store", ())

    assert (len(store), store.round_trips) == (1, ())


def test_hints_depend_on_the_origin_of_the_tokenizer() -> None:
    plain, changing = learn("identity"), learn("nfkc")

    assert "--byte-fallback" in hint_for_unknown("named")
    assert "tokenizer.byte_fallback" in hint_for_unknown("learned")
    assert "cannot grow" in hint_for_unknown("model")
    assert "--normalization-rule-name identity" in hint_for_changed("named", changing)
    assert "tokenizer.normalization_rule_name" in hint_for_changed("learned", changing)
    assert "train a new one" in hint_for_changed("model", changing)
    assert "`▁`" in hint_for_changed("model", plain)
