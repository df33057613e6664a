import io
import logging
import random
import re
import signal
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.errors import ConfigError, DataError, ResourceError
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import TrainerOptions, draw_sample, train_tokenizer

TEXT = [f"line {number} of {number * 7919 % 1000} on the mat" for number in range(400)]
SIZE = 320


def learn(lines: list[str] = TEXT, *, seed: int = 1, **settings: int | float | str | bool) -> bytes:
    config = TokenizerConfig(**{"vocab_size": SIZE, **settings})  # type: ignore[arg-type]
    return train_tokenizer(lines, config, seed=seed)


@settings(deadline=None)
@given(
    lines=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=60),
    max_lines=st.integers(1, 30),
    max_bytes=st.integers(1, 200),
    max_line_bytes=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
)
def test_a_sample_keeps_its_bounds_and_the_order(
    lines: list[str], max_lines: int, max_bytes: int, max_line_bytes: int, seed: int, shuffle: bool
) -> None:
    sample = draw_sample(
        lines, max_lines=max_lines, max_bytes=max_bytes, max_line_bytes=max_line_bytes,
        seed=seed, shuffle=shuffle,
    )  # fmt: skip

    usable = [
        line.encode() for line in lines if line.strip() and len(line.encode()) <= max_line_bytes
    ]
    remaining = iter(usable)
    assert all(text in remaining for text in sample.lines), "a subsequence"
    assert len(sample.lines) <= max_lines
    assert sum(map(len, sample.lines)) <= max_bytes
    if len(usable) <= max_lines and sum(map(len, usable)) <= max_bytes:
        assert sample.lines == usable
    if shuffle:
        assert sample.num_read == len(lines)
        assert sample.num_read - sample.num_blank - sample.num_too_long == len(usable)


def test_any_line_is_as_likely_as_any_other() -> None:
    lines = ["short", *["a line that is longer"] * 8, "last"]
    numbered = [f"{number} {line}" for number, line in enumerate(lines)]

    drawn = Counter(
        text for seed in range(4000) for text in draw_sample(numbered, max_lines=3, seed=seed).lines
    )

    expected = 4000 * 3 / 10
    assert len(drawn) == 10
    for count in drawn.values():  # 5 standard deviations of a binomial count
        assert abs(count - expected) < 5 * (expected * 0.7) ** 0.5


def test_the_sample_is_a_function_of_the_seed() -> None:
    once, again, other = (draw_sample(TEXT, max_lines=50, seed=seed) for seed in (1, 1, 2))

    assert once == again
    assert once.lines != other.lines


def test_without_shuffling_the_first_lines_are_taken_and_the_rest_is_not_read() -> None:
    lines = iter(TEXT)

    sample = draw_sample(lines, max_lines=10, seed=1, shuffle=False)

    assert sample.lines == [line.encode() for line in TEXT[:10]]
    assert next(lines) == TEXT[11]


@pytest.mark.slow
def test_memory_is_bounded_by_the_sample() -> None:
    def much_text() -> Iterator[str]:
        for number in range(50_000):
            yield f"{number} " * 50

    tracemalloc.start()
    sample = draw_sample(much_text(), max_lines=100_000, max_bytes=50_000, seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert 40_000 < sum(map(len, sample.lines)) <= 50_000
    assert peak < 400_000  # the text has 15 MB


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_same_input_and_seed_give_the_same_bytes(model_type: str) -> None:
    models = [
        learn(seed=seed, model_type=model_type, input_sentence_size=300, vocab_size=290)
        for seed in (1, 1, 2)
    ]

    assert models[0] == models[1]
    assert models[0] != models[2]


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "word"])
def test_a_small_corpus_is_learned_as_sentencepiece_learns_it(model_type: str) -> None:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXT), model_writer=writer, minloglevel=3, model_type=model_type,
        vocab_size=SIZE, byte_fallback=True, pad_id=0, unk_id=1, bos_id=2, eos_id=3,
    )  # fmt: skip

    ours = Tokenizer(learn(model_type=model_type)).scored_pieces

    assert ours == Tokenizer(writer.getvalue()).scored_pieces


def test_the_number_of_cores_does_not_alter_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    on_this_machine = learn()
    monkeypatch.setattr("os.cpu_count", lambda: 1)

    assert learn() == on_this_machine


def test_special_pieces_have_the_ids_0_to_3() -> None:
    pieces = [piece for piece, _ in Tokenizer(learn()).scored_pieces]

    assert pieces[:4] == ["<pad>", "<unk>", "<s>", "</s>"]


def test_nothing_is_printed_and_no_file_written(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    learn()
    with pytest.raises(ConfigError):
        learn(vocab_size=9999)

    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        ([], "0 read, 0 blank, 0 too long"),
        (["", " ", "\u3000"], "3 read, 3 blank, 0 too long"),
        (["x" * 5000, ""], "2 read, 1 blank, 1 too long"),
        (["\u200b\ufeff"], "1 read, 0 blank, 0 too long"),
    ],
)
def test_no_usable_line_is_an_error(lines: list[str], counts: str) -> None:
    with pytest.raises(DataError, match=f"0 usable lines to train a tokenizer on: {counts}"):
        learn(lines, normalization_rule_name="nmt_nfkc")


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "word"])
def test_more_pieces_than_the_text_yields_are_refused_and_the_most_is_named(
    model_type: str,
) -> None:
    with pytest.raises(ConfigError, match=r"`vocab_size` is 99999, but .* at most \d+ t") as error:
        learn(vocab_size=99999, model_type=model_type)

    most = int(re.findall(r"\d+", str(error.value))[1])
    assert error.value.hint == f"set `vocab_size` to {most} or less, or add text"
    assert Tokenizer(learn(vocab_size=most, model_type=model_type)).vocab_size == most


def test_fewer_pieces_than_characters_are_refused_and_the_fewest_is_named() -> None:
    with pytest.raises(ConfigError, match=r"`vocab_size` is 260, but .* at least \d+ t") as error:
        learn(vocab_size=260)

    fewest = int(re.findall(r"\d+", str(error.value))[1])
    assert error.value.hint
    assert Tokenizer(learn(vocab_size=fewest)).vocab_size == fewest


@pytest.mark.parametrize("model_type", ["char", "word"])
def test_fewer_pieces_than_the_special_ones_are_refused(model_type: str) -> None:
    with pytest.raises(ConfigError, match=r"`vocab_size` is 100, but the special .* need 260"):
        learn(vocab_size=100, model_type=model_type)


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "word"])
def test_soft_limit_accepts_a_smaller_vocabulary_and_logs_it(
    model_type: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tfm_cli"), "propagate", True)
    config = TokenizerConfig(vocab_size=9999, model_type=model_type)

    with caplog.at_level(logging.INFO, logger="tfm_cli"):
        model = train_tokenizer(["a", "b c"], config, seed=1, soft_limit=True)

    size = Tokenizer(model).vocab_size
    assert 260 < size < 300
    assert f"tokenizer: {size} tokens instead of 9999, the text yields no more" in caplog.text


def test_long_lines_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tfm_cli"), "propagate", True)

    with caplog.at_level(logging.WARNING, logger="tfm_cli"):
        model = learn([*TEXT, "q" * 4193])

    assert "tokenizer: lines of more than 4192 bytes, left out: 1" in caplog.text
    assert model == learn()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"user_defined_symbols": "x,<s>,</s>"}, "the model has these .* already: `<s>`, `</s>`"),
        ({"control_symbols": "<unk>"}, "the model has these symbols already: `<unk>`"),
        ({"user_defined_symbols": "x,x"}, "cannot be trained: x is already defined"),
    ],
)
def test_a_wrong_option_is_refused(extra: dict[str, str | bool], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(
            TEXT, TokenizerConfig(vocab_size=SIZE), seed=1, options=TrainerOptions(extra=extra)
        )


@pytest.mark.parametrize("symbols", ["a b", "<x>, <y>", "x,<y> ", '"a, b"', "x, "])
def test_user_defined_symbol_with_a_blank_is_refused(symbols: str) -> None:
    extra: dict[str, str | bool] = {"user_defined_symbols": symbols}

    with pytest.raises(ConfigError, match="no text yields these symbols, which have a space: `"):
        train_tokenizer(
            TEXT, TokenizerConfig(vocab_size=SIZE), seed=1, options=TrainerOptions(extra=extra)
        )


@pytest.mark.parametrize("symbols", ["mat", "x▁y", "▁on▁the", "▁MAT"])
def test_symbol_that_no_text_yields_is_refused(symbols: str) -> None:
    extra: dict[str, str | bool] = {"user_defined_symbols": symbols}
    config = TokenizerConfig(vocab_size=SIZE, model_type="word", normalization_rule_name="nfkc_cf")

    with pytest.raises(ConfigError, match=f"no text yields these symbols: `{symbols}`") as caught:
        train_tokenizer(TEXT, config, seed=1, soft_limit=True, options=TrainerOptions(extra=extra))

    assert caught.value.hint == "write `▁` before a word, or choose another `model_type`"


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "word"])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc_cf"])
def test_symbol_that_is_not_refused_is_one_piece(model_type: str, rule: str) -> None:
    inside = ["<X>", "mat", "on▁the", "a\u00a0b", "，", "z\ty"]
    symbols = ["▁<x>", "▁mat"] if model_type == "word" else inside
    config = TokenizerConfig(
        vocab_size=SIZE + 40, model_type=model_type, normalization_rule_name=rule,
    )  # fmt: skip

    model = train_tokenizer(
        TEXT,
        config,
        seed=1,
        soft_limit=True,
        options=TrainerOptions(extra={"user_defined_symbols": ",".join(symbols)}),
    )

    lines = ["5 " + symbol.replace("▁", " ") + " 5" for symbol in symbols]
    for symbol, pieces in zip(symbols, Tokenizer(model).encode_pieces(lines), strict=True):
        assert symbol in pieces


def test_control_symbol_may_have_a_blank() -> None:
    extra: dict[str, str | bool] = {"control_symbols": "a b"}

    model = train_tokenizer(
        TEXT, TokenizerConfig(vocab_size=SIZE), seed=1, options=TrainerOptions(extra=extra)
    )

    assert "a b" in Tokenizer(model).pieces


def test_further_options_reach_sentencepiece() -> None:
    extra: dict[str, str | bool] = {"user_defined_symbols": "<x>,mat", "split_digits": True}

    model = train_tokenizer(
        TEXT, TokenizerConfig(vocab_size=282), seed=1, options=TrainerOptions(extra=extra)
    )

    pieces = Tokenizer(model).encode_pieces(["mats 123 <x>"])[0]
    assert {"<x>", "mat", "1", "2", "3"} <= set(pieces)


def test_lack_of_memory_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "Train", fail)

    with pytest.raises(ResourceError, match="not enough memory to train") as error:
        learn()

    assert error.value.hint == "set `input_sentence_size` lower"


def test_the_ambient_random_state_is_neither_used_nor_changed() -> None:
    random.seed(5)
    before = random.getstate()

    draw_sample(TEXT, max_lines=5, seed=1)

    assert random.getstate() == before


def test_signals_have_their_default_effect_in_sentencepiece_unless_they_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    its_own = sentencepiece.SentencePieceTrainer.Train

    def watched(**options: Any) -> None:
        seen.extend(signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM))
        its_own(**options)

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "Train", watched)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler),
    }
    try:
        learn()
        after = [signal.getsignal(each) for each in before]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

    assert seen == [signal.SIG_IGN, signal.SIG_DFL]
    assert after == [signal.SIG_IGN, signal.default_int_handler]
