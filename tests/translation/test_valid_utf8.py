"""Translations are valid UTF-8 for any model, search and limit."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.translation.native_translator import native_translator, needs_native
from tests.translation.spelling_models import SHAPE, spelling_tokenizer, spelling_transformer
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig, TokenizerConfig
from tfm_cli.model.transformer import Transformer
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary
from tfm_cli.translation.assembly import Translation
from tfm_cli.translation.shortlist import Shortlist

LINES = ["one two", "three", "four five six seven", "eight 日本", "😀 nine"]


@pytest.fixture(scope="module", params=["own order", "another order"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Return a tokenizer with byte pieces in SentencePiece's order or in another."""
    own = spelling_tokenizer()
    if request.param == "own order":
        return own
    pieces = ("<pad>", *reversed([piece for piece in own.pieces if piece != "<pad>"]))
    return Tokenizer(own.model_bytes, Vocabulary(pieces, banned=("<pad>", "<unk>")))


@pytest.fixture(scope="module")
def transformers(tokenizer: Tokenizer) -> list[Transformer]:
    return [spelling_transformer(tokenizer, seed) for seed in range(2)]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def translated(
    transformers: list[Transformer], tokenizer: Tokenizer, lines: list[str],
    prefixes: list[str] | None = None, *, shortlist: Shortlist | None = None, native: str = "",
    **how: Any,
) -> list[Translation]:  # fmt: skip
    flags = {
        name: how.pop(name)
        for name in ("sampling", "scores", "word_scores", "alignment", "static_steps")
        if name in how
    }
    pair, search = TokenizerPair.joint(tokenizer), SearchConfig(**how)
    if native:
        translator = native_translator(
            transformers, pair, SHAPE, search=search, precision=native, shortlist=shortlist, **flags
        )
    else:
        translator = torch_translator(
            transformers[0], pair, search=search, others=transformers[1:], shortlist=shortlist,
            **flags,
        )  # fmt: skip
    return translator.translate_window(lines, prefixes or ())


NATIVE = ["", pytest.param("fp32", marks=needs_native)]  # PyTorch, and the native engine


def assert_valid(translations: list[Translation]) -> None:
    """Bytes that are not a character are decoded to U+FFFD."""
    texts = [candidate.text for each in translations for candidate in each.candidates]
    assert not [text for text in texts if "\ufffd" in text]
    # The random models must write byte tokens for this test to mean anything.
    assert re.search(r"[^\x00-\x7f]", "".join(texts))


SEARCHES: dict[str, dict[str, Any]] = {
    "beam": {},
    "wide": {"beam_size": 12, "n_best": 12},
    "greedy": {"beam_size": 1, "scores": False},
    "greedy with scores": {"beam_size": 1},
    "sampling": {"sampling": True, "beam_size": 1},
    "cold sampling": {"sampling": True, "beam_size": 1, "top_k": 5, "temperature": 0.5},
    "n-grams": {"no_repeat_ngram_size": 2},
    "n-grams in samples": {"no_repeat_ngram_size": 1, "sampling": True, "beam_size": 1},
    "penalty": {"repetition_penalty": 2.0},
    "renormalized": {"renormalize": True},
    "early": {"early_stopping": True, "length_norm": "wu"},
    "word scores": {"word_scores": True},
    "alignment": {"alignment": True},
    "fixed beam": {"static_steps": True},
    "fixed greedy": {"static_steps": True, "beam_size": 1, "scores": False},
}

CASES: list[Any] = [(search, "") for search in SEARCHES]
CASES += [
    pytest.param(search, precision, marks=needs_native)
    for precision, searches in (
        ("fp32", [search for search in SEARCHES if "fixed" not in search]),
        ("int8", ["beam", "greedy", "sampling"]),
    )
    for search in searches
]


@pytest.mark.parametrize(("search", "native"), CASES)
def test_every_search_writes_valid_text(
    transformers: list[Transformer], tokenizer: Tokenizer, search: str, native: str
) -> None:
    how = SEARCHES[search]
    for factor in (0.01, 0.3, 2.0):  # limits at every byte of a character
        result = translated(
            transformers[:1], tokenizer, LINES, native=native, max_length_factor=factor, **how
        )
        if factor == 2.0:
            assert_valid(result)
        assert not [each.text for each in result if "\ufffd" in each.text]


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("search", ["beam", "greedy", "sampling", "n-grams"])
def test_several_models_write_valid_text(
    transformers: list[Transformer], tokenizer: Tokenizer, search: str, native: str
) -> None:
    assert_valid(translated(transformers, tokenizer, LINES, native=native, **SEARCHES[search]))


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("search", ["beam", "greedy", "sampling", "n-grams"])
def test_shortlists_of_some_bytes_lead_to_valid_text(
    transformers: list[Transformer], tokenizer: Tokenizer, search: str, native: str
) -> None:
    """A shortlist allows a few bytes per source token, often without those that end a character."""
    size = tokenizer.vocab_size
    byte_ids = torch.tensor([*tokenizer.byte_values])
    generator = torch.Generator().manual_seed(3)
    best = byte_ids[torch.randint(len(byte_ids), (size, 12), generator=generator)].int()
    counts = torch.ones_like(best)
    ids = [i for i, piece in enumerate(tokenizer.pieces) if piece.isalpha()][:3]
    shortlist = Shortlist.of(best.tolist(), counts.tolist(), [1] * size, ids)

    how = SEARCHES[search]
    result = translated(
        transformers[:1], tokenizer, LINES, shortlist=shortlist, native=native, **how
    )

    assert not [each.text for each in result if "\ufffd" in each.text]


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("search", ["beam", "greedy", "sampling"])
def test_text_behind_a_prefix_in_bytes_is_valid(
    transformers: list[Transformer], tokenizer: Tokenizer, search: str, native: str
) -> None:
    prefixes = ["日本", "😀", "é", "one", ""]

    how = SEARCHES[search]
    result = translated(transformers[:1], tokenizer, LINES, prefixes, native=native, **how)

    assert_valid(result)
    for translation, prefix in zip(result, prefixes, strict=True):
        assert translation.text.startswith(prefix)


def test_pieces_of_bytes_are_known_by_their_kind_and_not_by_their_name() -> None:
    config = TokenizerConfig(
        vocab_size=30, model_type="char", byte_fallback=False,
    )  # fmt: skip
    without = Tokenizer(train_tokenizer(["<0x41> <0xE3>"] * 9, config, seed=1, soft_limit=True))
    named = Vocabulary((*without.pieces, "<0xE3>"), start="<s>", banned=("<s>", "<unk>"))

    assert without.byte_values == {}
    assert Tokenizer(without.model_bytes, named).byte_values == {}


def test_pieces_of_bytes_are_found_in_any_order(tokenizer: Tokenizer) -> None:
    values = tokenizer.byte_values

    assert sorted(values.values()) == list(range(256))
    assert all(tokenizer.pieces[i] == f"<0x{value:02X}>" for i, value in values.items())
    assert tokenizer.decode(
        [[{v: i for i, v in values.items()}[byte] for byte in "猫".encode()]]
    ) == ["猫"]
