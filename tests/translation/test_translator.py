import io
import random
from collections.abc import Callable, Sequence

import pytest
import sentencepiece
import torch
from torch import Tensor

from tests.model.small_transformers import transformer as transformer_of
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig, TokenizerConfig
from tfm_cli.decoding.interface import DecodingOptions, Hypothesis, TargetVocabulary
from tfm_cli.errors import ConfigError, DataError, ResourceError
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary
from tfm_cli.translation import torch_engine as module
from tfm_cli.translation.translator import Translator

CPU = torch.device("cpu")
TEXT = ["one two three . four five ! six ? seven ; eight 日本語。文"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Return a tokenizer with a piece for each character, and for each blank before it."""
    config = TokenizerConfig(vocab_size=300, model_type="char")
    return Tokenizer(train_tokenizer(TEXT, config, seed=1, soft_limit=True))


class Echo:
    """A fake `beam_search`, which copies each segment and records the batches."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.too_many = 1_000_000  # batch size from which memory is insufficient

    def __call__(
        self, model: object, source: Tensor, keep: Tensor | None, *,
        vocabulary: TargetVocabulary, options: DecodingOptions, **others: object,
    ) -> list[list[Hypothesis]]:  # fmt: skip
        if len(source) >= self.too_many:
            raise torch.OutOfMemoryError
        self.batches.append([tuple(row[: row.index(vocabulary.eos_id)]) for row in source.tolist()])
        return [
            [
                Hypothesis(ids[: len(ids) - rank], -rank, -rank / 2)
                for rank in range(options.settings.beam_size)
            ]
            for ids in self.batches[-1]
        ]

    def pieces_at_once(self) -> list[int]:
        return [len(ids) for batch in self.batches for ids in batch]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    stand_in = Echo()
    monkeypatch.setattr(module, "beam_search", stand_in)
    return stand_in


@pytest.fixture
def translator_of(tokenizer: Tokenizer) -> Callable[..., Translator]:
    def make(*, on_long: str = "split", positions: str = "rotary", **search: float) -> Translator:
        transformer = transformer_of(
            tokenizer.vocab_size, encoder_layers=1, decoder_layers=1, width=4, heads=1,
            feed_forward_width=4, positions=positions, max_positions=8,
        ).eval()  # fmt: skip
        config = SearchConfig(**search)  # type: ignore[arg-type]
        tokenizers = TokenizerPair.joint(tokenizer)
        return torch_translator(transformer, tokenizers, search=config, on_long=on_long, device=CPU)

    return make


TranslatorOf = Callable[..., Translator]


def texts(translator: Translator, lines: Sequence[str]) -> list[str]:
    return [translation.text for translation in translator.translate(lines)]


@pytest.mark.parametrize("buffer_size", [1, 3, 100])
def test_order_does_not_depend_on_length(
    translator_of: TranslatorOf, echo: Echo, buffer_size: int
) -> None:
    chance = random.Random(1)
    lines = ["".join(chance.choices("onetw", k=chance.randint(0, 20))) for _ in range(50)]

    assert texts(translator_of(buffer_size=buffer_size, max_tokens=100), lines) == lines


def test_segments_of_a_window_are_batched_by_length_within_the_budget(
    translator_of: TranslatorOf, echo: Echo
) -> None:
    lines = ["one " * (number % 5 + 1) for number in range(40)]

    texts(translator_of(max_tokens=200, beam_size=2), lines)

    sizes = echo.pieces_at_once()
    assert sizes == sorted(sizes, reverse=True)
    for batch in echo.batches:
        assert len(batch) * (len(batch[0]) + 1) * 2 <= 200


@pytest.mark.parametrize(
    "blank",
    ["", " ", "\t", " \t ", "\u3000", "\u2028", "\x85", "\ufeff", "\u200b", "\u200c \u200d",
     "\u00ad\u2060", "\x01\x7f"],
)  # fmt: skip
def test_blank_line_gives_a_blank_line_without_the_model(
    translator_of: TranslatorOf, echo: Echo, blank: str
) -> None:
    (translation,) = translator_of(n_best=2).translate([blank])

    assert [candidate.text for candidate in translation.candidates] == ["", ""]
    assert translation.source == blank
    assert translation.num_tokens == 0
    assert echo.batches == []


def test_blank_lines_stay_between_the_others(translator_of: TranslatorOf, echo: Echo) -> None:
    assert texts(translator_of(), ["", "one", " ", "", "two", ""]) == ["", "one", "", "", "two", ""]


def test_long_line_is_split_after_a_sentence_and_joined(
    translator_of: TranslatorOf, echo: Echo, log_messages: list[str]
) -> None:
    line = "one two three . four five ! six"

    assert texts(translator_of(max_length=20), ["one", line]) == ["one", line]

    parts = sorted(echo.pieces_at_once())
    assert parts == [len("▁one"), len("▁four▁five▁!▁six"), len("▁one▁two▁three▁.")]
    assert log_messages == ["line 2 has 32 tokens, more than 20: split"]


def test_long_sentence_is_split_between_words(translator_of: TranslatorOf, echo: Echo) -> None:
    line = "seven three eight seven"

    assert texts(translator_of(max_length=15), [line]) == [line]

    assert sorted(echo.pieces_at_once()) == [len("▁eight▁seven"), len("▁seven▁three")]


def test_long_word_is_split_anywhere(translator_of: TranslatorOf, echo: Echo) -> None:
    assert texts(translator_of(max_length=10), ["one" * 7]) == ["one" * 7]

    assert sorted(echo.pieces_at_once()) == [2, 10, 10]


def test_text_without_spaces_is_split_after_a_sentence(
    translator_of: TranslatorOf, echo: Echo
) -> None:
    texts(translator_of(max_length=12), ["日本語日本語。文日本語日本語"])

    assert sorted(echo.pieces_at_once()) == [len("文日本語日本語"), len("▁日本語日本語。")]


def test_parts_of_text_without_spaces_are_joined_without(
    translator_of: TranslatorOf, echo: Echo
) -> None:
    line = "日本語日本語。文日本語日本語"

    assert texts(translator_of(max_length=12), [line]) == [line]


@pytest.mark.parametrize("on_long", ["split", "cut"])
@pytest.mark.parametrize("longest", range(5, 12))
def test_no_character_spelled_in_bytes_is_cut(
    translator_of: TranslatorOf, echo: Echo, on_long: str, longest: int
) -> None:
    (result,) = texts(translator_of(max_length=longest, on_long=on_long), ["o☃ñ☃é☃☃"])

    assert "o☃ñ☃é☃☃".startswith(result.replace(" ", ""))
    assert on_long == "cut" or len(result.replace(" ", "")) == 7


def test_no_line_is_split_after_an_abbreviation(translator_of: TranslatorOf, echo: Echo) -> None:
    texts(translator_of(max_length=16), ["one two St. Two three four"])

    assert len("▁one▁two▁St.") not in echo.pieces_at_once()


def test_long_line_is_cut_if_requested(
    translator_of: TranslatorOf, echo: Echo, log_messages: list[str]
) -> None:
    translator = translator_of(max_length=8, on_long="cut", buffer_size=1)

    assert texts(translator, ["one", "one two three"]) == ["one", "one two"]
    assert log_messages == ["line 2 has 14 tokens, more than 8: cut"]


def test_score_of_a_split_line_is_the_mean_of_its_parts(
    translator_of: TranslatorOf, echo: Echo
) -> None:
    (translation,) = translator_of(max_length=15, n_best=3).translate(["seven three eight seven"])

    assert [(c.score, c.log_probability) for c in translation.candidates] == [
        (0, 0), (-0.5, -2), (-1, -4),
    ]  # fmt: skip
    assert translation.candidates[1].text == "seven thre eight seve"
    assert translation.num_tokens == 24 + 2


def test_parts_that_become_nothing_leave_no_blanks(
    translator_of: TranslatorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silence(*_: object, limits: Sequence[int], **others: object) -> list[list[Hypothesis]]:
        return [[Hypothesis((), -1.0, -1.0)] for _ in limits]

    monkeypatch.setattr(module, "beam_search", silence)

    assert texts(translator_of(max_length=4), ["one two three"]) == [""]


def test_learned_positions_are_never_exceeded(translator_of: TranslatorOf) -> None:
    translator = translator_of(positions="learned", max_length_factor=50)

    assert len(texts(translator, ["one two three . four five", "six"])) == 2


@pytest.mark.parametrize("too_many", [2, 3, 7])
def test_out_of_memory_halves_the_batch(
    translator_of: TranslatorOf, echo: Echo, too_many: int
) -> None:
    lines = [f"{'one ' * (number % 7)}two" for number in range(20)]
    echo.too_many = too_many

    assert texts(translator_of(), lines) == lines
    assert 1 <= max(len(batch) for batch in echo.batches) < too_many


def test_segment_that_does_not_fit_into_memory_is_an_error(
    translator_of: TranslatorOf, echo: Echo
) -> None:
    echo.too_many = 1
    message = "line 3: cpu has no memory for a segment of 4 tokens with a beam of 4"

    with pytest.raises(ResourceError, match=message) as caught:
        texts(translator_of(buffer_size=2), ["", "", "one"])

    assert "--beam-size" in str(caught.value.hint)


def test_number_of_translations_is_that_requested(translator_of: TranslatorOf, echo: Echo) -> None:
    (translation,) = translator_of(n_best=3, beam_size=4).translate(["one"])

    assert [candidate.text for candidate in translation.candidates] == ["one", "on", "o"]


def test_more_translations_than_the_beam_has_are_refused(translator_of: TranslatorOf) -> None:
    with pytest.raises(ConfigError, match="`--n-best` must be at most `--beam-size`, got 3 and 2"):
        translator_of(n_best=3, beam_size=2)


# Prefixes.


def test_prefix_that_is_too_long_is_refused_by_its_line(
    translator_of: TranslatorOf, echo: Echo
) -> None:
    message = "^line 2: the target prefix has 14 tokens, more than 8$"

    with pytest.raises(DataError, match=message):
        translator_of(max_length=8).translate_window(["one", "two"], ["", "one two three"])


def test_prefix_with_unknown_characters_is_reported(echo: Echo, log_messages: list[str]) -> None:
    config = TokenizerConfig(vocab_size=300, model_type="char", byte_fallback=False)
    tokenizer = Tokenizer(train_tokenizer(TEXT, config, seed=1, soft_limit=True))
    transformer = transformer_of(
        tokenizer.vocab_size, encoder_layers=1, decoder_layers=1, width=4, heads=1,
        feed_forward_width=4,
    ).eval()  # fmt: skip
    pair = TokenizerPair.joint(tokenizer)
    translator = torch_translator(transformer, pair, search=SearchConfig(), device=CPU)

    translator.translate_window(["one", "two"], ["one", "猫"])

    assert log_messages[-1] == "line 2: the target prefix has unknown characters"


def test_first_part_has_the_prefix_and_a_limit_beyond_it(
    translator_of: TranslatorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []  # tokens of the source, of the prefix, and their limit

    def remember(
        model: object, source: Tensor, keep: object, *, limits: Sequence[int],
        prefixes: Sequence[Sequence[int]], vocabulary: TargetVocabulary, **others: object,
    ) -> list[list[Hypothesis]]:  # fmt: skip
        lengths = [row.index(vocabulary.eos_id) for row in source.tolist()]
        asked.extend(zip(lengths, map(len, prefixes), limits, strict=True))
        return [[Hypothesis((), -1.0, -1.0)] for _ in limits]

    monkeypatch.setattr(module, "beam_search", remember)
    translator = translator_of(max_length=15, max_length_factor=0.1)

    translator.translate_window(["seven three eight seven"], ["four five six"])

    prefix = len("▁four▁five▁six")
    assert sorted(asked) == [(len("▁eight▁seven"), 0, 11), (len("▁seven▁three"), prefix, prefix)]


# Language tags.


@pytest.fixture(params=["vocabulary", "learned"])
def tagged(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Tokenizer:
    if request.param == "learned":
        config = TokenizerConfig(vocab_size=300, model_type="char")
        tags = (">>deu<<", ">>fra<<")
        return Tokenizer(train_tokenizer(TEXT, config, seed=1, soft_limit=True, tags=lambda: tags))
    vocabulary = Vocabulary(("</s>", "<unk>", *tokenizer.pieces[4:], ">>deu<<", ">>fra<<", "<pad>"))
    return Tokenizer(tokenizer.model_bytes, vocabulary)


@pytest.fixture
def multilingual(tagged: Tokenizer, echo: Echo) -> Translator:
    transformer = transformer_of(
        tagged.vocab_size, encoder_layers=1, decoder_layers=1, width=4, heads=1,
        feed_forward_width=4,
    ).eval()  # fmt: skip
    pair = TokenizerPair(tagged, tagged)
    return torch_translator(transformer, pair, search=SearchConfig(), device=CPU)


def test_language_tag_reaches_the_model_as_one_piece(
    multilingual: Translator, tagged: Tokenizer, echo: Echo
) -> None:
    list(multilingual.translate([">>deu<< one"]))

    ((ids,),) = echo.batches
    assert len(ids) == 1 + len("▁one")
    assert ids[0] == tagged.piece_ids([">>deu<<"])[0]


def test_each_part_of_an_over_long_line_has_the_language_tag(
    multilingual: Translator, tagged: Tokenizer, echo: Echo
) -> None:
    (tag,) = tagged.piece_ids([">>deu<<"])
    (whole,) = tagged.encode([">>deu<< " + "one two. " * 100])

    list(multilingual.translate([">>deu<< " + "one two. " * 100]))

    parts = [list(ids) for batch in echo.batches for ids in batch]
    assert len(parts) > 2
    assert all(part[0] == tag and len(part) <= 256 for part in parts)
    assert sum(len(part) - 1 for part in parts) == len(whole) - 1


def test_missing_and_unknown_language_tags_are_each_reported_once(
    multilingual: Translator, log_messages: list[str]
) -> None:
    lines = [">>deu<< one", "", "one", ">>xyz<< two", "two", ">>xyz<< one"]

    list(multilingual.translate(lines))

    assert log_messages == [
        "line 3: has no target language, such as >>deu<< at its start",
        "line 4: `>>xyz<<` is not a target language: the model has >>deu<<, >>fra<<",
    ]


def test_lines_of_a_text_have_the_tag_of_the_line_before_them(
    multilingual: Translator, tagged: Tokenizer, echo: Echo
) -> None:
    list(multilingual.translate([">>deu<< one\ntwo\n\n>>fra<< one\ntwo"]))

    lines = [">>deu<< one", ">>deu<< two", ">>fra<< one", ">>fra<< two"]
    result = [list(ids) for batch in echo.batches for ids in batch]
    assert sorted(result) == sorted(tagged.encode(lines))


def test_tag_of_an_older_tokenizer_is_on_every_part(tokenizer: Tokenizer, echo: Echo) -> None:
    """SentencePiece puts a blank before a tag whose piece has none."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=written, vocab_size=300, model_type="char",
        hard_vocab_limit=False, user_defined_symbols=[">>deu<<"], minloglevel=3,
    )  # fmt: skip
    older = Tokenizer(written.getvalue())
    transformer = transformer_of(
        older.vocab_size, encoder_layers=1, decoder_layers=1, width=4, heads=1,
        feed_forward_width=4,
    ).eval()  # fmt: skip
    pair = TokenizerPair.joint(older)
    translator = torch_translator(transformer, pair, search=SearchConfig(max_length=9), device=CPU)

    list(translator.translate([">>deu<< one two four"]))

    parts = [[older.pieces[i] for i in ids] for batch in echo.batches for ids in batch]
    assert len(parts) > 1
    assert all(part[:2] == ["▁", ">>deu<<"] and len(part) <= 9 for part in parts)
