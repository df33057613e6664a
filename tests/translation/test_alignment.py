from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.small_transformers import transformer as transformer_of
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig, TokenizerConfig
from tfm_cli.decoding.interface import DecodingOptions, Hypothesis, TargetVocabulary
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary
from tfm_cli.translation import torch_engine as module
from tfm_cli.translation.alignment import Aligner
from tfm_cli.translation.assembly import Assembler
from tfm_cli.translation.formats import alignment_pairs
from tfm_cli.translation.search import SearchOptions, alignment_layer
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.torch_engine import TorchEngine
from tfm_cli.translation.translator import Translator

CPU = torch.device("cpu")
TEXT = ["one two three . four five ! six ? seven ; eight 日本語。文"] * 20


@pytest.mark.parametrize(("layers", "chosen"), [(1, 0), (2, 1), (3, 1), (4, 2), (6, 4)])
def test_alignment_uses_the_last_layer_but_one_unless_it_is_the_first(
    layers: int, chosen: int
) -> None:
    assert alignment_layer(layers) == chosen


# A model whose attention is made by hand.


class Diagonal:
    """A fake Transformer: step t attends to source token t, and a little to </s>."""

    decoder_layers = (None,)

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.too_many = 1_000_000  # batch size from which memory is insufficient

    def cross_attention_weights(
        self, source: Tensor, keep: Tensor | None, target: Tensor, *, layer: int
    ) -> Tensor:
        if len(source) >= self.too_many:
            raise torch.OutOfMemoryError
        self.sizes.append(len(source))
        weights = 0.75 * torch.eye(target.shape[1], source.shape[1]).repeat(len(source), 1, 1)
        ends = (torch.ones_like(source, dtype=torch.bool) if keep is None else keep.flatten(1)).sum(
            1
        )
        for row, end in enumerate(ends.tolist()):
            weights[row, :, end - 1] += 0.25
        return weights


def echo(
    model: object, source: Tensor, keep: object, *, vocabulary: TargetVocabulary,
    options: DecodingOptions, **others: object,
) -> list[list[Hypothesis]]:  # fmt: skip
    """A fake `beam_search`: the source, then the source without its last tokens."""
    rows = [row[: row.index(vocabulary.eos_id)] for row in source.tolist()]
    return [
        [
            Hypothesis(tuple(ids[: len(ids) - rank]), 0.0, 0.0)
            for rank in range(options.settings.beam_size)
        ]
        for ids in rows
    ]


def tokenizer_of(*, vocabulary: bool, rule: str) -> Tokenizer:
    config = TokenizerConfig(vocab_size=300, model_type="char", normalization_rule_name=rule)
    tokenizer = Tokenizer(train_tokenizer(TEXT, config, seed=1, soft_limit=True))
    if not vocabulary:
        return tokenizer
    pieces = ("</s>", "<unk>", *tokenizer.pieces[4:], ">>deu<<", "<pad>")
    return Tokenizer(tokenizer.model_bytes, Vocabulary(pieces))


TranslatorOf = Callable[..., Translator]


@pytest.fixture(params=[False, True], ids=["sentencepiece", "vocabulary"])
def translator_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TranslatorOf:
    def make(
        *, on_long: str = "split", model: Any = None, rule: str = "identity", **search: float
    ) -> Translator:
        tokenizers = TokenizerPair.joint(tokenizer_of(vocabulary=request.param, rule=rule))
        transformer = transformer_of(
            tokenizers.target.vocab_size, encoder_layers=1, decoder_layers=1, width=4, heads=1,
            feed_forward_width=4,
        ).eval()  # fmt: skip
        config = SearchConfig(**search)  # type: ignore[arg-type]
        diagonal = model or Diagonal()
        monkeypatch.setattr(
            transformer, "cross_attention_weights", diagonal.cross_attention_weights
        )
        return torch_translator(
            transformer, tokenizers, search=config, on_long=on_long, device=CPU, alignment=True
        )

    monkeypatch.setattr(module, "beam_search", echo)
    return make


def engine_of(tokenizer: Tokenizer) -> TorchEngine:
    """Return an engine whose attention is that of `Diagonal`."""
    transformer = transformer_of(
        tokenizer.vocab_size, encoder_layers=1, decoder_layers=1, width=4, heads=1,
        feed_forward_width=4,
    ).eval()  # fmt: skip
    transformer.cross_attention_weights = Diagonal().cross_attention_weights  # type: ignore[assignment]
    options = SearchOptions(settings=SearchConfig())
    return TorchEngine([transformer], TokenizerPair.joint(tokenizer), options, device=CPU)


def hard(
    translator: Translator, lines: Sequence[str], rank: int = 0
) -> list[list[tuple[int, int]]]:
    return [
        alignment_pairs(translation.candidates[rank].alignment, "hard")
        for translation in translator.translate(lines)
    ]


def diagonal(words: int) -> list[tuple[int, int]]:
    return [(word, word) for word in range(words)]


LINES = [
    "one two three", "", "  one \u00a0 two\u3000three  ", " ", "one", "日本語。文 one ½ x… four",
    "☃ one ☃☃ two", "one\ttwo", "half \ud800 a pair", "one" * 9, "e\u0301 two",
]  # fmt: skip


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("max_length", [256, 12, 5])
def test_words_of_an_echo_are_aligned_with_themselves(
    translator_of: TranslatorOf, max_length: int, rule: str
) -> None:
    """Words are separated by blanks, for any blanks, unknown characters and parts."""
    translator = translator_of(max_length=max_length, max_tokens=60, rule=rule)

    for translation in translator.translate(LINES):
        if len(translation.text.split()) == len(translation.source.split()):
            result = alignment_pairs(translation.candidates[0].alignment, "hard")
            assert result == diagonal(len(translation.source.split()))
        elif max_length > 100:
            pytest.fail(f"{translation.source!r} became {translation.text!r}")


@pytest.mark.parametrize("max_length", [256, 12, 7, 5])
def test_each_word_of_a_translation_has_a_row(translator_of: TranslatorOf, max_length: int) -> None:
    lines = [
        *LINES,
        "日本語日本語。日本語 one two three日本語",
        "one☃two☃three" * 3,
        "三 日本。語 三",
    ]

    for translation in translator_of(max_length=max_length, max_tokens=60).translate(lines):
        (candidate,) = translation.candidates
        assert len(candidate.alignment) == len(candidate.text.split()), translation.source


def test_word_that_the_normalizer_takes_apart_is_one_on_the_line(
    translator_of: TranslatorOf,
) -> None:
    assert hard(translator_of(rule="nmt_nfkc"), ["a\u200bb c"]) == [
        [(0, 0), (0, 1), (1, 2)]
    ]  # a b c


@pytest.mark.parametrize("max_length", [15, 24, 31])
def test_words_of_a_split_line_count_from_its_beginning(
    translator_of: TranslatorOf, max_length: int
) -> None:
    line = "seven three eight seven one. two three. four five six seven"

    assert hard(translator_of(max_length=max_length), ["one", line]) == [diagonal(1), diagonal(11)]


def test_word_of_two_parts_without_a_blank_between_has_one_row(translator_of: TranslatorOf) -> None:
    line = "日本語日本語日本語"
    translator = translator_of(max_length=6)

    (translation,) = translator.translate([line])

    assert translation.text == line
    (row,) = translation.candidates[0].alignment
    (whole,) = next(iter(translator_of().translate([line]))).candidates[0].alignment
    assert row == pytest.approx(whole, abs=1e-6)


def test_words_that_were_cut_off_have_no_part(translator_of: TranslatorOf) -> None:
    assert hard(translator_of(max_length=8, on_long="cut"), ["one two three"]) == [diagonal(2)]


def test_each_candidate_has_its_own(translator_of: TranslatorOf) -> None:
    translator = translator_of(n_best=4, beam_size=5)

    assert [hard(translator, ["one two", ""], rank) for rank in range(4)] == [
        [diagonal(2), []], [diagonal(2), []], [diagonal(2), []], [diagonal(1), []],
    ]  # fmt: skip


def test_attention_to_the_end_is_dropped_and_a_word_has_the_mean_of_its_tokens(
    translator_of: TranslatorOf,
) -> None:
    (translation,) = translator_of().translate(["one two"])

    assert torch.tensor(translation.candidates[0].alignment).tolist() == [[0.75, 0], [0, 0.75]]


def test_language_tag_is_the_first_word_in_every_part() -> None:
    tokenizer = tokenizer_of(vocabulary=True, rule="identity")
    pair = TokenizerPair.joint(tokenizer)
    aligner = Aligner(engine_of(tokenizer), pair, 1000)
    line = ">>deu<< one two three"
    ((tag, *ids),) = tokenizer.encode([line])
    parts = [[tag, *ids[:4]], [tag, *ids[4:]]]
    segments = [Segment(0, number, 1, part, 0, []) for number, part in enumerate(parts)]

    assemble = Assembler(tokenizer, n_best=1, aligner=aligner)
    hypotheses = [[Hypothesis(tuple(part), 0.0, 0.0)] for part in parts]

    (translation,) = assemble([line], [segments], [hypotheses])

    # The fake model writes the tag as a word of each part: ">>deu<< one >>deu<< two three".
    weights = torch.tensor(translation.candidates[0].alignment)
    assert weights.argmax(dim=1).tolist() == [0, 1, 0, 2, 3]
    assert weights.shape == (5, 4)


@pytest.mark.parametrize("too_many", [2, 3])
def test_out_of_memory_halves_the_batch(translator_of: TranslatorOf, too_many: int) -> None:
    model = Diagonal()
    model.too_many = too_many
    lines = ["one two"] * 9

    assert hard(translator_of(model=model), lines) == [diagonal(2)] * 9
    assert max(model.sizes) < too_many
    assert sum(model.sizes) == 9


def test_single_segment_that_does_not_fit_into_memory_is_an_error(
    translator_of: TranslatorOf,
) -> None:
    model = Diagonal()
    model.too_many = 1

    with pytest.raises(MemoryError):
        hard(translator_of(model=model), ["one two"])
