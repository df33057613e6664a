"""Untrained models of every shape, with random weights and translations that end."""

import copy
import dataclasses
import functools
import io
import random

import sentencepiece
import torch

from tests.decoding.searching import beam_search
from tfm_cli.config.settings import ModelConfig, RunConfig, SearchConfig, TokenizerConfig
from tfm_cli.corpus.batch import pad_source
from tfm_cli.model.layers import DecoderLayer
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.weights import TrainedModel, build_transformer
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

TAG = ">>deu<<"


_SEARCH = SearchConfig(max_length=40)
_WORDS = {
    "source": ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "small", "dogs", "run"),
    "target": ("die", "Katze", "saß", "auf", "einer", "Matte", "und", "sah", "zwei", "Hunde"),
}


def lines(count: int, *, side: str = "source", seed: int = 1) -> list[str]:
    """Return lines of one to nine words that these tokenizers know."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(_WORDS[side], k=rng.randint(1, 9))) for _ in range(count)]


def random_tokenizers(kind: str = "joint") -> TokenizerPair:
    """Return small tokenizers, the same object at each call.

    Args:
        kind: `joint`: one for both sides; `separate`: two, with a vocabulary each that
            SentencePiece numbered, of different sizes; `shared`: two with one vocabulary in an
            order of its own and a language tag, as OPUS-MT has them; `vocabularies`: two, each
            with such a vocabulary; `padless`: one for both sides, with SentencePiece's default
            ids, which leave padding out.
    """
    return _tokenizers(kind)


def random_model(
    *,
    tokenizers: str = "joint",
    seed: int = 1,
    search: SearchConfig = _SEARCH,
    **shape: object,
) -> TrainedModel:
    """Return a model in evaluation mode on the CPU, without near ties among its logits.

    Args:
        tokenizers: see `random_tokenizers`.
        seed: of the weights.
        search: settings of the search.
        shape: settings of `ModelConfig`; by default two layers of width 16 on each side.
    """
    small = {
        "encoder_layers": 2, "decoder_layers": 2, "width": 16, "heads": 2,
        "feed_forward_width": 24, "dropout": 0.0, "max_positions": 256,
    }  # fmt: skip
    # Not validated: tests pass valid settings.
    config = dataclasses.replace(ModelConfig(), **{**small, **shape})  # type: ignore[arg-type]
    run = dataclasses.replace(RunConfig(), model=config, search=search)
    # A copy, so that a test may change its weights.
    transformer = copy.deepcopy(_transformer(tokenizers, seed, config))
    return TrainedModel(run, random_tokenizers(tokenizers), transformer)


@functools.cache
def _transformer(tokenizers: str, seed: int, config: ModelConfig) -> Transformer:
    pair = random_tokenizers(tokenizers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = build_transformer(config, pair.vocab_sizes).eval()
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():
                if name == "output.weight" or name.endswith("_embedding.weight"):
                    parameter.normal_(std=2.5 * config.width**-0.5)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.3)
                elif "norm" in name:
                    parameter.uniform_(0.6, 1.4)
                else:
                    parameter.mul_(3.0)
        _let_end(transformer, pair)
    return transformer


@torch.no_grad()
def _let_end(transformer: Transformer, pair: TokenizerPair) -> None:
    """Raise the logit of </s> until most beams end.

    The bias of the last norm is a constant part of all last hidden states; the embedding of </s>
    gets an increasing share of it. That works for every shape, with or without an output bias.
    """
    last = transformer.decoder_layers[-1]
    assert isinstance(last, DecoderLayer)
    norm = transformer.decoder_norm or last.feed_forward_norm.norm
    norm.bias.normal_(std=0.5)
    # Gains of both signs keep a tied output from repeating its input.
    norm.weight.mul_(torch.randn_like(norm.weight).sign())
    constant = norm.bias / norm.bias.square().sum()
    source, keep = pad_source(pair.source.encode(lines(8)), pair.source.eos_id)
    target = pair.target
    for _ in range(12):
        found = beam_search(
            transformer, source, keep, limits=[12] * 8, start_id=target.start_id,
            eos_id=target.eos_id, banned_ids=target.banned_ids, beam_size=4, early_stopping=True,
        )  # fmt: skip
        if sum(max(len(h.ids) for h in every) < 12 for every in found) >= 5:
            break
        transformer.output_weight[target.eos_id] += 1.5 * constant


@functools.cache
def _tokenizers(kind: str) -> TokenizerPair:
    if kind in ("joint", "padless"):
        both = [*lines(200, side="source"), *lines(200, side="target")]
        if kind == "padless":
            return TokenizerPair.joint(Tokenizer(_padless(both)))
        return TokenizerPair.joint(Tokenizer(_sentencepiece(tuple(both), 48)))
    source_bytes = _sentencepiece(tuple(lines(200, side="source")), 32)
    target_bytes = _sentencepiece(tuple(lines(200, side="target")), 30)
    source, target = Tokenizer(source_bytes), Tokenizer(target_bytes)
    if kind == "separate":
        return TokenizerPair(source, target)
    specials = ("<pad>", "<unk>", "<s>", "</s>")
    own, other = (
        [piece for piece in tokenizer.pieces if piece not in specials]
        for tokenizer in (source, target)
    )
    if kind == "shared":
        own = other = sorted({*own, *other})
    elif kind != "vocabularies":
        raise ValueError(f"no such tokenizers: {kind}")
    vocabularies = [
        Vocabulary(("</s>", "<unk>", *pieces, TAG, "<pad>"), banned=("<pad>", "<unk>"))
        for pieces in (own, other)
    ]
    return TokenizerPair(
        Tokenizer(source_bytes, vocabularies[0]), Tokenizer(target_bytes, vocabularies[1])
    )


@functools.cache
def _sentencepiece(text: tuple[str, ...], size: int) -> bytes:
    config = TokenizerConfig(vocab_size=size, byte_fallback=False)
    return train_tokenizer(text, config, seed=1)


def _padless(text: list[str]) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=written,
        vocab_size=70,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    return written.getvalue()
