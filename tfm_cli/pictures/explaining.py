"""Computation of an explanation from a forward pass and the searches of a model."""

# S source tokens, T target tokens, D model width, H heads, E = D // H, P positions, V vocabulary,
# C candidates

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from tfm_cli.config.settings import RunConfig, SearchConfig
from tfm_cli.corpus.batch import make_batch, pad_source
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.model.attention import MultiHeadAttention
from tfm_cli.model.layers import EncoderLayer
from tfm_cli.model.positions import LearnedPositions, SinusoidalPositions, rotations
from tfm_cli.model.recording import recording
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.weights import TrainedModel
from tfm_cli.pictures.explanation import (
    AddAndNorm,
    Array,
    Attention,
    Candidates,
    Contrast,
    Embeddings,
    Explanation,
    ModelFacts,
    MultiHead,
    Permutation,
    Refinement,
    ResidualStream,
    TeacherForcing,
    Tokenization,
    Tokens,
)
from tfm_cli.pictures.patching import contrast
from tfm_cli.pictures.search_comparison import Searcher
from tfm_cli.text.characters import is_blank
from tfm_cli.tokenizer.model_file import SPACE_SYMBOL
from tfm_cli.tokenizer.sampling import SAMPLED_ALGORITHMS, LineSampler
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.translation.search import alignment_layer, unusable_weights_as_model_error

MAX_TOKENS = 512  # of a sentence, since attention has S * S weights for each head
_NUM_SEGMENTATIONS = 5  # other segmentations that are shown
_DRAWS = 64  # segmentations that are sampled to find as many different ones
_UNIGRAM_ALPHA, _BPE_ALPHA = 0.2, 0.15  # see `word_sampler`
_MIN_POSITIONS, _MAX_POSITIONS = 64, 512
_CANDIDATES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions:
    """The options of an explanation.

    Attributes:
        layer, head: the ones to show first, from 0.
        search: of the translations; None for the model's own settings.
        example_seconds: maximum time to find a sentence on which greedy search goes wrong and
            beam search does not; 0 does not look.
        contrast: a sentence to set against; None for none.
    """

    layer: int = 0
    head: int = 0
    search: SearchConfig | None = None
    example_seconds: float = 0.0
    contrast: str | None = None


DEFAULT_OPTIONS = ExplainOptions()


@torch.inference_mode()
def explain(
    model: TrainedModel,
    sentence: str,
    *,
    target: str = "",
    name: str = "the model",
    options: ExplainOptions = DEFAULT_OPTIONS,
) -> Explanation:
    """Return the numbers of a model at work on a sentence.

    Args:
        model: on the CPU, in evaluation mode.
        sentence: the source text, one line.
        target: the translation that the decoder reads; "" for the model's own.
        name: name of the model, usually the path of its directory.
        options: what is shown, and how the model translates.

    Raises:
        ConfigError: the model has no such layer or head, or the sentences cannot be contrasted.
        DataError: a sentence is blank, or a text is too long.
        ModelError: the weights are of no use.
    """
    check_choice(model.config, options)
    settings = options.search or model.config.search
    source, given = model.tokenizers.source, model.tokenizers.target
    ids = _encoded(source, sentence, "the sentence", model.transformer)
    with unusable_weights_as_model_error(name):
        searcher = Searcher(model.transformer, model.tokenizers, settings, max_tokens=MAX_TOKENS)
        search = searcher.explained(sentence, ids, example_seconds=options.example_seconds)
    translated = search.comparison.beam
    target_ids: Sequence[int] = translated.tokens.ids[:-1]
    if not is_blank(target):
        target_ids = _encoded(given, target, "the target", model.transformer)
    run = ForwardPass.of(model, ids, target_ids)
    contrasted = None
    if options.contrast is not None:
        with unusable_weights_as_model_error(name):
            contrasted = _contrast(model, searcher, (sentence, options.contrast), ids, target_ids)
    return Explanation(
        model=_facts(model, name),
        sentence=sentence,
        translation=translated.text,
        target_text=translated.text if is_blank(target) else target,
        layer=options.layer,
        head=options.head,
        source=_source_tokens(source, sentence, ids),
        target_input=_tokens(given, [given.start_id, *target_ids]),
        target=_tokens(given, [*target_ids, given.eos_id]),
        tokenization=_tokenization(source, sentence, ids),
        embeddings=_embeddings(run),
        self_attention=run.attentions("encoder", "self_attention"),
        masked_self_attention=run.attentions("decoder", "self_attention"),
        cross_attention=run.attentions("decoder", "cross_attention"),
        alignment_layer=alignment_layer(len(model.transformer.decoder_layers)),
        multi_head=_multi_head(run, options.layer),
        add_and_norm=_residual_stream(run),
        refinement=_refinement(run),
        teacher_forcing=_teacher_forcing(run, is_given=not is_blank(target)),
        search=search,
        contrast=contrasted,
    )


def _contrast(
    model: TrainedModel,
    searcher: Searcher,
    sentences: tuple[str, str],
    ids: Sequence[int],
    target_ids: Sequence[int],
) -> Contrast:
    """Return what carries the difference between two sentences, given the ids of the first pair."""
    source, target = model.tokenizers
    other_ids = _encoded(source, sentences[1], "the sentence of `--contrast`", model.transformer)
    translated = searcher.translation(other_ids)
    return contrast(
        model.transformer,
        target,
        ids=([*ids, source.eos_id], [*other_ids, source.eos_id]),
        sentences=sentences,
        pieces=(
            _source_tokens(source, sentences[0], ids).pieces,
            _source_tokens(source, sentences[1], other_ids).pieces,
        ),
        target_ids=([*target_ids, target.eos_id], [*translated, target.eos_id]),
    )


def check_choice(config: RunConfig, options: ExplainOptions) -> None:
    """Raise a ConfigError if the model has no such layer or head.

    The layer and the head are shown of every attention, so both stacks must have them.
    """
    shape = config.model
    for flag, value, encoder, decoder in (
        ("--layer", options.layer, shape.encoder_layers, shape.decoder_layers),
        ("--head", options.head, shape.heads, shape.decoder_heads or shape.heads),
    ):
        noun, least = flag.removeprefix("--"), min(encoder, decoder)
        if not 0 <= value < least:
            counts = f"{encoder} and {decoder}" if encoder != decoder else f"{encoder}"
            message = f"`{flag} {value + 1}`: encoder and decoder have {counts} {noun}s"
            raise ConfigError(message, hint=f"choose a {noun} from 1 to {least}")


def _encoded(tokenizer: Tokenizer, text: str, name: str, transformer: Transformer) -> list[int]:
    """Return the ids of a text.

    Raises:
        DataError: it is blank or too long.
    """
    if is_blank(text):
        raise DataError(f"{name} is blank, expected words")
    (ids,) = tokenizer.encode([text])
    most = MAX_TOKENS
    if isinstance(transformer.target_positions, LearnedPositions):
        most = min(most, transformer.target_positions.embedding.num_embeddings - 1)
    if len(ids) > most:
        raise DataError(f"{name} has {len(ids)} tokens, expected at most {most}")
    return ids


def _facts(model: TrainedModel, name: str) -> ModelFacts:
    shape, transformer = model.config.model, model.transformer
    source_size, target_size = model.tokenizers.vocab_sizes
    return ModelFacts(
        name=name,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        width=shape.width,
        encoder_heads=shape.heads,
        decoder_heads=shape.decoder_heads or shape.heads,
        encoder_feed_forward_width=shape.feed_forward_width,
        decoder_feed_forward_width=shape.decoder_feed_forward_width or shape.feed_forward_width,
        norm=shape.norm,
        positions=shape.positions,
        activation=shape.activation,
        tokenizer=model.tokenizers.source.algorithm,
        source_vocab_size=source_size,
        target_vocab_size=target_size,
        parameters=sum(parameter.numel() for parameter in transformer.parameters()),
    )


# One forward pass with all its values.


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """One forward pass of the model on one pair, with the values that it computed.

    Attributes:
        model: the model.
        source: source ids with </s>, (1, S).
        target_in: what the decoder reads, (1, T).
        target_out: what it should write, (T,).
        logits: (T, V).
        values: see `recording`.
    """

    model: TrainedModel
    source: Tensor
    target_in: Tensor
    target_out: Tensor
    logits: Tensor
    values: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, model: TrainedModel, source: Sequence[int], target: Sequence[int]) -> "ForwardPass":
        """Return the pass over a pair of ids without </s>.

        Raises:
            ModelError: the logits are not finite numbers.
        """
        batch = make_batch(
            [source], [target], start_id=model.tokenizers.target.start_id,
            eos_id=model.tokenizers.target.eos_id, source_eos_id=model.tokenizers.source.eos_id,
        )  # fmt: skip
        with recording(model.transformer) as values:
            logits = model.transformer(batch.source, None, batch.target_in)[0]  # (T, V)
        return cls(model, batch.source, batch.target_in, batch.target_out[0], logits, values)

    def array(self, name: str) -> Array:
        """Return a value by its name, without the dimension of the batch."""
        return numbers(self.values[name][0])

    def attentions(self, stack: str, sublayer: str) -> tuple[Attention, ...]:
        """Return the attention of a sub-layer in each layer of a stack."""
        found = []
        for layer in range(self.num_layers(stack)):
            name = f"{stack}.{layer}.{sublayer}"
            parts = ("query", "key", "value", "products", "scores", "weights", "heads", "output")
            arrays = {part: self.array(f"{name}.{part}") for part in parts}
            found.append(Attention(name=name, layer=layer, **arrays))
        return tuple(found)

    def num_layers(self, stack: str) -> int:
        """Return the number of layers of `encoder` or `decoder`."""
        return len(self.model.transformer.get_submodule(f"{stack}_layers"))  # type: ignore[arg-type]


def numbers(values: Tensor) -> Array:
    """Return a tensor as an array of its own, in single precision."""
    return values.float().cpu().numpy().copy()


# Section 1: tokenization.


def _tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> Tokens:
    return Tokens(tuple(tokenizer.pieces[each] for each in ids), tuple(ids))


def _source_tokens(source: Tokenizer, sentence: str, ids: Sequence[int]) -> Tokens:
    """Return the source tokens with </s>; the pieces of unknown tokens are the text itself."""
    (pieces,) = source.encode_pieces([sentence])
    end = source.eos_id
    return Tokens((*pieces, source.pieces[end]), (*ids, end))


def _tokenization(source: Tokenizer, sentence: str, ids: Sequence[int]) -> Tokenization:
    own = tuple(source.encode_pieces([sentence])[0])
    others, note = _other_segmentations(source, sentence, own)
    word, pieces = _unknown_word(source, sentence)
    return Tokenization(
        other_segmentations=tuple(
            Tokens(other, tuple(source.piece_ids(other))) for other in others
        ),
        segmentation_note=note,
        unknown_word=word,
        unknown_word_tokens=Tokens(pieces, tuple(source.piece_ids(pieces))),
    )


def _other_segmentations(
    source: Tokenizer, sentence: str, own: tuple[str, ...]
) -> tuple[list[tuple[str, ...]], str]:
    """Return different segmentations of a sentence, and the reason if there are few or none."""
    algorithm = source.algorithm
    if algorithm not in SAMPLED_ALGORITHMS:
        return [], f"a {algorithm} tokenizer has one segmentation of a sentence"
    alpha = _BPE_ALPHA if algorithm == "bpe" else _UNIGRAM_ALPHA
    sampler = LineSampler(source, alpha=alpha)
    segmentations: dict[tuple[str, ...], None] = {}  # in the order in which they are drawn
    for seed in range(1, _DRAWS + 1):
        segmentation = tuple(sampler.pieces(sentence, seed=seed))
        if segmentation != own:
            segmentations[segmentation] = None
        if len(segmentations) == _NUM_SEGMENTATIONS:
            break
    note = ""
    if algorithm == "bpe":
        note = "byte-pair encoding has one segmentation; others arise when merges are skipped"
    elif len(segmentations) < _NUM_SEGMENTATIONS:
        note = f"{_DRAWS} draws gave no more"
    if not segmentations:
        note = f"{_DRAWS} draws of the {algorithm} tokenizer gave no other segmentation"
    return list(segmentations), note


def _unknown_word(source: Tokenizer, sentence: str) -> tuple[str, tuple[str, ...]]:
    """Return a word that is not in the vocabulary, and its pieces.

    It is the word of the sentence with the most pieces, or, if each word is one piece, the longest
    word written backwards.
    """
    words = list(dict.fromkeys(sentence.split()))
    cut = [tuple(pieces) for pieces in source.encode_pieces(words)]
    most = max(range(len(words)), key=lambda i: len(cut[i]))
    if len(cut[most]) > 1 or len(sentence) < 2:
        return words[most], cut[most]
    backwards = max(words, key=len)[::-1]
    return backwards, tuple(source.encode_pieces([backwards])[0])


# Section 2: embeddings and positions.


def _embeddings(run: ForwardPass) -> Embeddings:
    transformer = run.model.transformer
    has_positions = "source.positions" in run.values
    table = _position_table(run)
    similarity, lowest, highest = _similarity(table)
    return Embeddings(
        scale=transformer.embedding_scale,
        embedding=run.array("source.embedding"),
        positions=run.array("source.positions") if has_positions else None,
        input=run.array("source.input"),
        table=table,
        similarity=similarity,
        lowest_similarity=lowest,
        highest_similarity=highest,
        permutation=_permutation(run),
    )


def _position_table(run: ForwardPass) -> Array:
    """Return the encodings of the first positions, (P, D); of rotary ones the sines and cosines."""
    count = max(_MIN_POSITIONS, min(_MAX_POSITIONS, run.source.shape[1]))
    positions = run.model.transformer.source_positions
    if isinstance(positions, SinusoidalPositions):
        return numbers(positions.table(count, torch.device("cpu")))
    if isinstance(positions, LearnedPositions):
        return numbers(positions.embedding.weight[:count])
    shape = run.model.config.model
    cos, sin = rotations(torch.arange(count), shape.width // shape.heads)  # (P, E / 2) each
    return numbers(torch.stack((sin, cos), dim=2).flatten(1))  # (P, E)


def _similarity(table: Array) -> tuple[Array, Array, Array]:
    """Return mean, least and greatest cosine of two rows by their distance, (P,) each."""
    exact = table.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)  # (P, 1)
    rows = exact / np.maximum(lengths, np.finfo(np.float64).tiny)
    cosines = rows @ rows.T  # (P, P)
    diagonals = [np.diagonal(cosines, distance) for distance in range(len(table))]
    mean, least, greatest = (
        np.array([reduce(each) for each in diagonals], dtype=np.float32)
        for reduce in (np.mean, np.min, np.max)
    )
    return mean, least, greatest


def _permutation(run: ForwardPass) -> Permutation:
    """Return the encoder's output for the words in reverse order, with and without positions."""
    tokenizer, transformer = run.model.tokenizers.source, run.model.transformer
    ids = run.source[0].tolist()
    order = reversed_words([tokenizer.pieces[each] for each in ids[:-1]])
    order = [*order, len(order)]  # </s> stays last
    back = torch.tensor(order).argsort()  # (S,) the place of each source token
    permuted = run.source[:, order]  # (1, S)
    moved = transformer.encode(permuted, None)[0][back]  # (S, D)
    with without_positions(transformer):
        vectors = transformer.encode(run.source, None)[0]  # (S, D)
        same = transformer.encode(permuted, None)[0][back]  # (S, D)
    return Permutation(
        order=tuple(order),
        tokens=_tokens(tokenizer, permuted[0].tolist()),
        vectors=numbers(vectors),
        permuted_vectors=numbers(same),
        difference=numbers((vectors - same).abs().amax(dim=1)),
        difference_with_positions=numbers(
            (run.values["encoder.output"][0] - moved).abs().amax(dim=1)
        ),
    )


def reversed_words(pieces: Sequence[str]) -> list[int]:
    """Return the indices of pieces with the words in reverse order, or of one word its pieces."""
    words: list[list[int]] = []
    for index, piece in enumerate(pieces):
        if piece.startswith(SPACE_SYMBOL) or not words:
            words.append([])
        words[-1].append(index)
    if len(words) == 1:
        words = [[index] for index in words[0]]
    return [index for word in reversed(words) for index in word]


@contextlib.contextmanager
def without_positions(transformer: Transformer) -> Iterator[None]:
    """Remove the positions of the encoder inside the block."""
    layers = [cast(EncoderLayer, layer) for layer in transformer.encoder_layers]
    positions, rotary = transformer.source_positions, [layer.rotary for layer in layers]
    try:
        transformer.source_positions = None
        for layer in layers:
            layer.rotary = None
        yield
    finally:
        transformer.source_positions = positions
        for layer, module in zip(layers, rotary, strict=True):
            layer.rotary = module


# Section 6: multi-head attention.


def _multi_head(run: ForwardPass, layer: int) -> MultiHead:
    name = f"encoder.{layer}.self_attention"
    attention = run.model.transformer.get_submodule(f"encoder_layers.{layer}.self_attention")
    matrix = cast(MultiHeadAttention, attention).output
    heads = run.values[f"{name}.heads"][0]  # (H, S, E)
    weight = matrix.weight.T  # (D, D), the output is x W^O
    parts = weight.reshape(heads.shape[0], -1, weight.shape[1])  # (H, E, D)
    return MultiHead(
        layer=layer,
        concatenated=numbers(heads.transpose(0, 1).flatten(1)),  # (S, D)
        output_weight=numbers(weight),
        output_bias=numbers(matrix.bias),
        contributions=numbers(heads @ parts),  # (H, S, D)
        output=run.array(f"{name}.output"),
    )


# Section 7: add & norm.


def _residual_stream(run: ForwardPass) -> ResidualStream:
    encoder, decoder = (
        tuple(
            _add_and_norm(run, stack, layer, sublayer)
            for layer in range(run.num_layers(stack))
            for sublayer in ("self_attention", "cross_attention", "feed_forward")
            if f"{stack}.{layer}.{sublayer}_norm.sum" in run.values
        )
        for stack in ("encoder", "decoder")
    )
    return ResidualStream(encoder=encoder, decoder=decoder, batch_difference=_batch_difference(run))


def _add_and_norm(run: ForwardPass, stack: str, layer: int, sublayer: str) -> AddAndNorm:
    name = f"{stack}.{layer}.{sublayer}_norm"
    parts = {part: run.array(f"{name}.{part}") for part in ("input", "sublayer", "sum", "output")}
    is_pre = f"{name}.normed" in run.values
    before = parts["input"] if is_pre else parts["sum"]
    after = run.array(f"{name}.normed") if is_pre else parts["output"]
    norm = run.model.transformer.get_submodule(f"{stack}_layers.{layer}.{sublayer}_norm.norm")
    gain, bias = cast(nn.LayerNorm, norm).weight, cast(nn.LayerNorm, norm).bias
    return AddAndNorm(
        name=name,
        stack=stack,
        layer=layer,
        sublayer_name=sublayer,
        **parts,
        before=before,
        after=after,
        mean_before=before.mean(axis=1),
        deviation_before=before.std(axis=1),
        mean_after=after.mean(axis=1),
        deviation_after=after.std(axis=1),
        gain=numbers(gain),
        bias=numbers(bias),
    )


def _batch_difference(run: ForwardPass) -> float:
    """Return the largest |difference| of the encoder's output, alone and in a batch."""
    ids = run.source[0].tolist()
    longer = [*ids[:-1][::-1], *ids[:-1]][: len(ids)]  # one token more than the sentence
    source, keep = pad_source([ids[:-1], longer], run.model.tokenizers.source.eos_id)
    together = run.model.transformer.encode(source, keep)[0, : len(ids)]  # (S, D)
    return float((together - run.values["encoder.output"][0]).abs().max())


# Sections 8 and 9: the distributions of the next token.


def _candidates(log_probs: Tensor, tokenizer: Tokenizer) -> Candidates:
    """Return the likeliest tokens of distributions (T, V)."""
    best, ids = log_probs.topk(min(_CANDIDATES, log_probs.shape[1]), dim=1)  # (T, C) each
    rows = ids.tolist()
    return Candidates(
        pieces=tuple(tuple(tokenizer.pieces[each] for each in row) for row in rows),
        ids=tuple(map(tuple, rows)),
        probabilities=numbers(best.exp()),
    )


def lens(run: ForwardPass) -> list[Tensor]:
    """Return the log-probabilities of the next token after each decoder layer, (T, V) each."""
    transformer = run.model.transformer
    found = []
    for layer in range(run.num_layers("decoder")):
        hidden = run.values[f"decoder.{layer}.feed_forward_norm.output"][0]  # (T, D)
        if transformer.decoder_norm is not None:
            hidden = transformer.decoder_norm(hidden)
        found.append(transformer.logits(hidden).log_softmax(dim=1))  # (T, V)
    return found


def _refinement(run: ForwardPass) -> Refinement:
    tokenizer = run.model.tokenizers.target
    layers = lens(run)  # L tensors (T, V)
    stacked = torch.stack(layers)  # (L, T, V)
    expected = run.target_out.expand(len(layers), -1)[:, :, None]  # (L, T, 1)
    log_probs = stacked.gather(2, expected)  # (L, T, 1)
    texts = tokenizer.decode([_until_end(each.argmax(dim=1), tokenizer) for each in layers])
    return Refinement(
        layers=tuple(_candidates(each, tokenizer) for each in layers),
        texts=tuple(texts),
        target_probability=numbers(log_probs[:, :, 0].exp()),
        target_rank=((stacked > log_probs).sum(dim=2) + 1).numpy(),
        entropy=numbers(-(stacked.exp() * stacked).nan_to_num().sum(dim=2) / math.log(2)),
    )


def _until_end(ids: Tensor, tokenizer: Tokenizer) -> list[int]:
    """Return ids (T,) up to </s>."""
    listed: list[int] = ids.tolist()
    end = tokenizer.eos_id
    return listed[: listed.index(end)] if end in listed else listed


def _teacher_forcing(run: ForwardPass, *, is_given: bool) -> TeacherForcing:
    tokenizer, smoothing = run.model.tokenizers.target, run.model.config.training.label_smoothing
    log_probs = run.logits.log_softmax(dim=1)  # (T, V)
    loss = -log_probs.gather(1, run.target_out[:, None])[:, 0]  # (T,)
    even = -log_probs.mean(dim=1)  # (T,)
    position, piece, difference = _changed_token(run, log_probs)
    total = float(loss.sum())
    return TeacherForcing(
        is_given=is_given,
        probability=numbers((-loss).exp()),
        loss=numbers(loss),
        total_loss=total,
        perplexity=math.exp(min(total / len(loss), 700.0)),
        label_smoothing=smoothing,
        smoothed_loss=float(((1 - smoothing) * loss + smoothing * even).sum()),
        best=_candidates(log_probs, tokenizer),
        changed_position=position,
        changed_to=piece,
        column_difference=numbers(difference),
    )


def _changed_token(run: ForwardPass, log_probs: Tensor) -> tuple[int, str, Tensor]:
    """Replace a target token in the decoder's input, and compare the logits at each position.

    Returns:
        The index of the token in the target, the piece that replaced it, and the largest
        |difference| of the logits at each position, (T,).
    """
    tokenizer = run.model.tokenizers.target
    length = len(run.target_out)
    if length < 2:
        return -1, "", torch.zeros(length)
    position = (length - 1) // 2  # its place in the input is one further to the right
    ranked = log_probs[position].argsort(descending=True).tolist()
    excluded = {int(run.target_out[position]), tokenizer.eos_id, *tokenizer.banned_ids}
    other = next((each for each in ranked if each not in excluded), ranked[0])
    changed = run.target_in.clone()
    changed[0, position + 1] = other
    logits = run.model.transformer(run.source, None, changed)[0]  # (T, V)
    return position, tokenizer.pieces[other], (logits - run.logits).abs().amax(dim=1)
