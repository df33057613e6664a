"""The numbers of a Transformer at work on one sentence, in the order of the paper."""

# S source tokens, T target tokens, Q queries, K keys, D model width, H heads, E = D // H,
# P positions, L decoder layers, C candidates

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens in order; the pieces are text of the user or the model, and `▁` marks a space."""

    pieces: tuple[str, ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The hyperparameters of the model.

    Attributes:
        name: path of the model directory.
        encoder_layers, decoder_layers: N of the stacks.
        width: D, d_model.
        encoder_heads, decoder_heads: H; the width of a head, d_k, is D // H.
        encoder_feed_forward_width, decoder_feed_forward_width: d_ff.
        norm: `post` as in the paper, `pre` or `deepnorm`.
        positions: `sinusoidal` as in the paper, `sinusoidal_halves`, `sinusoidal_marian`,
            `learned` or `rotary`.
        activation: `relu` as in the paper, `gelu`, `swish` or `swiglu`.
        tokenizer: `unigram`, `bpe`, `word` or `char`; "" if unknown.
        source_vocab_size, target_vocab_size: tokens of each side.
        parameters: number of weights.
    """

    name: str
    encoder_layers: int
    decoder_layers: int
    width: int
    encoder_heads: int
    decoder_heads: int
    encoder_feed_forward_width: int
    decoder_feed_forward_width: int
    norm: str
    positions: str
    activation: str
    tokenizer: str
    source_vocab_size: int
    target_vocab_size: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenization:
    """Section 1: the sentence as tokens.

    Attributes:
        other_segmentations: further segmentations of the same sentence, sampled with a fixed seed;
            no two are equal and none is the sentence's own. Without </s>.
        segmentation_note: the reason why there are few of them or none; "" otherwise.
        unknown_word: a word that is not in the vocabulary.
        unknown_word_tokens: the tokens that it is split into.
    """

    other_segmentations: tuple[Tokens, ...]
    segmentation_note: str
    unknown_word: str
    unknown_word_tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Permutation:
    """The encoder's output for the same tokens in another order.

    Row i of each array belongs to token i of the source, wherever the order puts it.

    Attributes:
        order: (S,) the source token at each place of the permuted sentence; </s> stays last.
        tokens: the permuted sentence.
        vectors: the output without positions, in the original order, (S, D).
        permuted_vectors: the same for the permuted sentence, row i for source token i, (S, D).
        difference: largest |difference| of each row of the two, (S,); about 1e-7, by rounding.
        difference_with_positions: the same of the model as it is, with positions, (S,).
    """

    order: tuple[int, ...]
    tokens: Tokens
    vectors: Array
    permuted_vectors: Array
    difference: Array
    difference_with_positions: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Section 2: embedding + position = input of the encoder.

    Attributes:
        scale: factor of the embeddings, sqrt(D) as in the paper, or 1.
        embedding: of each source token, scaled, (S, D).
        positions: encoding added at each position, (S, D); None if positions are rotary.
        input: of the first encoder layer, (S, D).
        table: encodings of positions 0 … P - 1, (P, D). If positions are rotary: sines (even
            columns) and cosines (odd columns) of the angles of a head, (P, E).
        similarity: cosine of the encodings of two positions by their distance 0 … P - 1, averaged
            over all pairs of positions below P, (P,).
        lowest_similarity, highest_similarity: extremes over these pairs, (P,); sinusoids depend on
            the distance only, so both equal `similarity`.
        permutation: the demonstration that order is lost without positions.
    """

    scale: float
    embedding: Array
    positions: Array | None
    input: Array
    table: Array
    similarity: Array
    lowest_similarity: Array
    highest_similarity: Array
    permutation: Permutation


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Sections 3 to 6: the attention of one layer, Q queries and K keys.

    Rows and columns belong to the source tokens in the encoder, to `target_input` in masked
    self-attention, and to `target_input` and `source` in encoder-decoder attention.

    Attributes:
        name: such as `encoder.0.self_attention`.
        layer: from 0.
        query: (H, Q, E); rotated if positions are rotary and it is self-attention.
        key: (H, K, E); likewise.
        value: (H, K, E).
        products: Q K^T, (H, Q, K), without the mask.
        scores: Q K^T / sqrt(E) after the mask, (H, Q, K); -inf where nothing may be attended to.
        weights: softmax of the scores, (H, Q, K).
        heads: weights times values, (H, Q, E).
        output: the concatenated heads times W^O plus its bias, (Q, D).
    """

    name: str
    layer: int
    query: Array
    key: Array
    value: Array
    products: Array
    scores: Array
    weights: Array
    heads: Array
    output: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiHead:
    """Section 6: heads side by side, concatenated, times W^O, in the chosen encoder layer.

    The heads themselves are those of `self_attention[layer]`.

    Attributes:
        layer: of the encoder, from 0.
        concatenated: the heads side by side, (S, D).
        output_weight: W^O, (D, D); output = concatenated @ output_weight + output_bias.
        output_bias: (D,).
        contributions: the part of the output that comes from each head, (H, S, D); their sum plus
            the bias is the output.
        output: (S, D).
    """

    layer: int
    concatenated: Array
    output_weight: Array
    output_bias: Array
    contributions: Array
    output: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAndNorm:
    """Section 7: the residual stream around one sub-layer, with N tokens (S or T).

    post-norm: sum = input + sublayer; output = norm(sum), so `before` is `sum` and `after` is
    `output`. pre-norm: the sub-layer reads norm(input), so `before` is `input` and `after` is what
    the sub-layer reads; output = sum. DeepNorm: as post-norm; `sublayer` is divided by alpha.

    Attributes:
        name: such as `encoder.0.feed_forward_norm`.
        stack: `encoder` or `decoder`.
        layer: from 0.
        sublayer_name: `self_attention`, `cross_attention` or `feed_forward`.
        input, sublayer, sum, output: (N, D).
        before, after: the layer norm's input and output, (N, D).
        mean_before, deviation_before: over the D elements of each token, (N,).
        mean_after, deviation_after: the same after the norm with its gain and bias, (N,).
        gain, bias: of the layer norm, (D,).
    """

    name: str
    stack: str
    layer: int
    sublayer_name: str
    input: Array
    sublayer: Array
    sum: Array
    output: Array
    before: Array
    after: Array
    mean_before: Array
    deviation_before: Array
    mean_after: Array
    deviation_after: Array
    gain: Array
    bias: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualStream:
    """Section 7: all add & norm steps in the order of computation.

    Attributes:
        encoder, decoder: the steps of each stack.
        batch_difference: largest |difference| of the encoder's output between the sentence alone
            and the sentence in a batch with a longer one: the norm is per token, not per batch.
    """

    encoder: tuple[AddAndNorm, ...]
    decoder: tuple[AddAndNorm, ...]
    batch_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The likeliest next tokens at each of T steps, best first.

    Attributes:
        pieces, ids: (T, C).
        probabilities: (T, C).
    """

    pieces: tuple[tuple[str, ...], ...]
    ids: tuple[tuple[int, ...], ...]
    probabilities: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """Section 8: what the model would write after each decoder layer (the logit lens).

    The output of each layer goes through the final norm, if there is one, and the output matrix.

    Attributes:
        layers: the likeliest tokens after each layer; the last is the model's own distribution.
        texts: for each layer, the text of its likeliest tokens.
        target_probability: probability of each target token after each layer, (L, T).
        target_rank: its rank, 1 for the likeliest, (L, T).
        entropy: of each distribution, in bits, (L, T).
    """

    layers: tuple[Candidates, ...]
    texts: tuple[str, ...]
    target_probability: Array
    target_rank: NDArray[np.int64]
    entropy: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherForcing:
    """Section 9: all target positions at once.

    The input is `Explanation.target_input`, the expected output `Explanation.target`.

    Attributes:
        is_given: True if the user gave the target; otherwise it is the model's own translation.
        probability: of each target token, (T,).
        loss: -ln of it, (T,).
        total_loss: their sum, which training minimizes.
        perplexity: exp of their mean.
        label_smoothing: of the model's training.
        smoothed_loss: the sum with label smoothing.
        best: the likeliest tokens at each position.
        changed_position: index of a target token that was replaced in the input by another one;
            -1 if the target is too short for it.
        changed_to: the piece that replaced it.
        column_difference: largest |difference| of the logits at each position by that change, (T,):
            0 before it.
    """

    is_given: bool
    probability: Array
    loss: Array
    total_loss: float
    perplexity: float
    label_smoothing: float
    smoothed_loss: float
    best: Candidates
    changed_position: int
    changed_to: str
    column_difference: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingStep:
    """One step of greedy search.

    Attributes:
        step: from 1.
        input: the newest token, which the decoder reads.
        chosen: the token that it writes.
        log_probability: of that token.
        best_pieces, best_probabilities: the likeliest tokens, (C,).
        cache_shape: of the keys, and of the values, that each decoder layer keeps, (H, step, E).
        memory_shape: of the keys, and of the values, of the source, computed once, (H, S, E).
        cache_numbers: numbers kept for the target in all layers.
        memory_numbers: numbers kept for the source in all layers.
    """

    step: int
    input: str
    chosen: str
    log_probability: float
    best_pieces: tuple[str, ...]
    best_probabilities: tuple[float, ...]
    cache_shape: tuple[int, int, int]
    memory_shape: tuple[int, int, int]
    cache_numbers: int
    memory_numbers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """A translation that a search has found.

    Attributes:
        text: the translation.
        tokens: with </s>.
        token_log_probabilities: of each token.
        log_probability: sum over the tokens.
        score: log-probability after length normalization.
    """

    text: str
    tokens: Tokens
    token_log_probabilities: tuple[float, ...]
    log_probability: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A hypothesis in the tree of a beam search: its parent with one more token.

    Attributes:
        parent: index of the parent in the tree; -1 for the root, which is the start token.
        step: length of the hypothesis, 0 for the root.
        piece, id: its newest token.
        token_log_probability: of the newest token.
        log_probability: of the whole hypothesis.
        score: log-probability after length normalization.
        state: `kept` in the beam, `finished` with </s>, or `dropped`.
        is_best: True on the path to the translation.
        is_greedy: True on the path that greedy search takes.
    """

    parent: int
    step: int
    piece: str
    id: int
    token_log_probability: float
    log_probability: float
    score: float
    state: str
    is_best: bool
    is_greedy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Greedy search beside beam search on one sentence.

    Attributes:
        source: the sentence.
        reference: its translation in the test text; "" if unknown.
        greedy, beam: the best hypotheses.
        beam_size, length_penalty: options of the beam search.
        tree: all candidates of the beam search, parents before children; the root is first.
    """

    source: str
    reference: str
    greedy: SearchResult
    beam: SearchResult
    beam_size: int
    length_penalty: float
    tree: tuple[Node, ...]

    @property
    def agree(self) -> bool:
        """Return True if both searches find the same translation."""
        return self.greedy.tokens == self.beam.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Section 10: inference token by token.

    Attributes:
        encoder_passes: times that the encoder was computed in the greedy search.
        decoder_passes: times that the decoder was computed.
        steps: of the greedy search.
        comparison: greedy search beside beam search on the sentence.
        example: a sentence on which greedy search is wrong and beam search is right, if they agree
            on this one and such a sentence was found.
        example_note: where the example is from, or why there is none; "" if none was looked for.
    """

    encoder_passes: int
    decoder_passes: int
    steps: tuple[DecodingStep, ...]
    comparison: Comparison
    example: Comparison | None
    example_note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The part of each encoder vector in the difference of two sentences (activation patching).

    Attributes:
        sentence: the other one.
        source: its tokens with </s>, (S,), as many as the sentence has.
        prefix: the beginning that both translations share.
        tokens: the token after it in the sentence's translation, and in that of the other one.
        log_odds: log p(first token) - log p(second token) after the prefix, of the sentence.
        other_log_odds: the same of the other sentence.
        shares: how much of the way from `log_odds` to `other_log_odds` is gone when one vector is
            replaced by that of the other sentence, (L + 1, S): in row 0 the input of the encoder
            layers, in row l the output of layer l.
    """

    sentence: str
    source: Tokens
    prefix: str
    tokens: Tokens
    log_odds: float
    other_log_odds: float
    shares: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All numbers of one sentence.

    Attributes:
        sentence: the source text.
        translation: the model's own, by beam search.
        target_text: the target that the decoder reads, the given one or the translation.
        layer, head: the ones to show first, from 0; each below the least number of any attention.
        source: source tokens with </s>, (S,).
        target_input: what the decoder reads: the start token, then the target without </s>, (T,).
        target: what it should write: all target tokens with </s>, (T,).
        self_attention: of each encoder layer.
        masked_self_attention, cross_attention: of each decoder layer.
        alignment_layer: the decoder layer, from 0, whose encoder-decoder attention `tfm translate
            --alignment` averages over its heads.
        contrast: with another sentence; None without one.
    """

    model: ModelFacts
    sentence: str
    translation: str
    target_text: str
    layer: int
    head: int
    source: Tokens
    target_input: Tokens
    target: Tokens
    tokenization: Tokenization
    embeddings: Embeddings
    self_attention: tuple[Attention, ...]
    masked_self_attention: tuple[Attention, ...]
    cross_attention: tuple[Attention, ...]
    alignment_layer: int
    multi_head: MultiHead
    add_and_norm: ResidualStream
    refinement: Refinement
    teacher_forcing: TeacherForcing
    search: Search
    contrast: Contrast | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as JSON values; numbers that are not finite are null."""
        return {field.name: _json(getattr(self, field.name)) for field in dataclasses.fields(self)}


_DECIMALS = 8


def _json(value: Any) -> Any:
    """Return a value of an explanation as JSON has it."""
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_json(each) for each in value]
    if dataclasses.is_dataclass(value):
        return {
            field.name: _json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return value


def _array(values: NDArray[Any]) -> list[Any]:
    """Return an array as lists, with eight decimals; numbers that are not finite are null."""
    if values.dtype.kind == "i":
        return list(values.tolist())
    rounded = values.astype(np.float64).round(_DECIMALS) + 0.0  # -0.0 becomes 0.0
    shown = rounded.astype(object)
    shown[~np.isfinite(rounded)] = None
    return list(shown.tolist())
