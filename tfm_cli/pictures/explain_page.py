"""The page of `tfm explain`: all pictures of one sentence, in the order of the paper."""

# S source tokens, T target tokens, D model width, H heads, E = D // H, L layers

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tfm_cli.config.settings import norm_name
from tfm_cli.console import one_line
from tfm_cli.pictures import formulas
from tfm_cli.pictures.arrays import Floats, Part
from tfm_cli.pictures.attention_lines import Lines, attention_lines, attention_picker
from tfm_cli.pictures.charts import Columns, Json, Value, color, named
from tfm_cli.pictures.explanation import (
    AddAndNorm,
    Array,
    Attention,
    Comparison,
    Contrast,
    Explanation,
    SearchResult,
)
from tfm_cli.pictures.heat_maps import Axis, HeatMapStyle, beside, heat_map
from tfm_cli.pictures.page import Block, Chart, Drawing, Page, Prose, Table
from tfm_cli.pictures.search_tree import search_tree, tree_alternative
from tfm_cli.pictures.token_rows import token_rows

if TYPE_CHECKING:
    from tfm_cli.pictures.cost import Cost

MAX_TOKENS = 48  # of a sentence in a picture
MAX_COLUMNS = 64  # numbers of a vector in a picture
_WIDTH = 700  # pixels for what is side by side
_PRONOUNS = ("it", "il", "elle", "er", "sie", "es")  # words that refer to another one


def explain_page(explanation: Explanation, *, cost: "Cost | None" = None) -> Page:
    """Return the page of an explanation.

    Args:
        explanation: the numbers.
        cost: self-attention against recurrence, if it was measured.
    """
    page = Page(explanation.sentence, *_introduction(explanation))
    shown = Shown(page, explanation)
    _add_tokenization(shown)
    _add_embeddings(shown)
    _add_self_attention(shown)
    _add_masked_self_attention(shown)
    _add_cross_attention(shown)
    _add_multi_head(shown)
    _add_add_and_norm(shown)
    _add_refinement(shown)
    _add_teacher_forcing(shown)
    _add_search(shown)
    from tfm_cli.pictures.cost import add_cost_section, cost_command

    add_cost_section(page, cost, cost_command(explanation.model.name))
    if explanation.contrast is not None:
        _add_contrast(shown, explanation.contrast)
    return page


@dataclass(frozen=True)
class Shown:
    """A page with the explanation that it shows, cut to the tokens that pictures have room for."""

    page: Page
    all: Explanation

    @property
    def source(self) -> tuple[str, ...]:
        """Return the pieces of the source."""
        return self.all.source.pieces[:MAX_TOKENS]

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the pieces that the decoder reads."""
        return self.all.target_input.pieces[:MAX_TOKENS]

    @property
    def writes(self) -> tuple[str, ...]:
        """Return the pieces that the decoder should write."""
        return self.all.target.pieces[:MAX_TOKENS]

    def add(self, name: str, values: Array, **axes: int | Sequence[str]) -> str:
        """Add an array to the page and return its name.

        Args:
            name: of the data.
            values: an array whose axes of tokens are cut.
            axes: for each axis the number of its first element, or the text of each element.
        """
        texts = {axis: each for axis, each in axes.items() if not isinstance(each, int)}
        firsts = {axis: each if isinstance(each, int) else 0 for axis, each in axes.items()}
        array = Floats(np.asarray(values, np.float32), firsts, texts)
        self.page.add_data(name, array)
        return name

    def add_heads(
        self, name: str, arrays: Sequence[Array], group: str, **texts: Sequence[str]
    ) -> Floats:
        """Add an array of all layers and heads, and the part that a picker changes.

        The array is named `<name>-all`, the part `<name>`.
        """
        rows, columns = list(texts)
        values = np.stack([cut(each, axis=1, to=len(texts[rows])) for each in arrays])
        if texts[columns]:
            values = cut(values, axis=3, to=len(texts[columns]))
        kept = {axis: each for axis, each in texts.items() if each}
        array = Floats(values, {"layer": 1, "head": 1, rows: 0, columns: 0}, kept)
        self.page.add_data(f"{name}-all", array)
        self.page.add_data(name, Part(f"{name}-all", array, (self.all.layer, self.all.head), group))
        return array


def cut(values: NDArray[np.float32], *, axis: int, to: int) -> NDArray[np.float32]:
    """Return the first elements of an axis."""
    return values.take(range(min(to, values.shape[axis])), axis=axis)


def _tokens_axis(
    name: str, pieces: Sequence[str], meaning: str, *, title: str = "", size: float = 0
) -> Axis:
    """Return an axis of tokens."""
    size = size or max(10.0, min(22.0, 520 / max(1, len(pieces))))
    return Axis(name=name, title=title, meaning=meaning, texts=pieces, size=size)


def _strip_axis(width: int, room: float, *, title: str) -> Axis:
    """Return an axis of the numbers of vectors."""
    return Axis(name="column", title=title, meaning="column", size=min(10.0, room / width))


def _columns(names: Sequence[str], rows: Sequence[Sequence[Value]]) -> Columns:
    """Return a table by its rows."""
    return Columns(dict(zip(names, zip(*rows, strict=True), strict=True)))


def _introduction(explanation: Explanation) -> list[Block]:
    model = explanation.model
    blocks: list[Block] = [
        Prose("Translation of the model: {}", (explanation.translation,)),
        Prose(
            "What a Transformer does to this sentence, step by step, in the words and in the "
            f"order of Vaswani et al. 2017 (arXiv:1706.03762). The model in {{}}: N = "
            f"{model.encoder_layers} encoder and {model.decoder_layers} decoder layers, d_model = "
            f"{model.width}, h = {model.encoder_heads} heads with d_k = d_v = "
            f"{model.width // model.encoder_heads}, d_ff = {model.encoder_feed_forward_width}, "
            f"{norm_name(model.norm)}, {model.parameters:,} parameters.",
            (model.name,),
        ),
        Prose(
            "Each number is the model's own. Point at a cell for its number, or press Tab to reach "
            "a picture and then the arrow keys. Blue is positive, orange negative; the stronger "
            "the color, the greater the number."
        ),
    ]
    longest = max(len(explanation.source), len(explanation.target))
    if longest > MAX_TOKENS:
        blocks.append(
            Prose(
                f"The pictures have the first {MAX_TOKENS} of {longest} tokens; `tfm explain "
                f"--format json` has all."
            )
        )
    return blocks


# 1


def _add_tokenization(shown: Shown) -> None:
    explanation, made = shown.all, shown.all.tokenization
    model = explanation.model
    rows = [("this sentence", explanation.source)]
    rows += [
        (f"another segmentation {n}", each) for n, each in enumerate(made.other_segmentations, 1)
    ]
    word = made.unknown_word_tokens
    blocks: list[Block] = [
        Prose(
            f"A tokenizer splits the sentence into tokens of its vocabulary of "
            f"{model.source_vocab_size:,} tokens; ▁ stands for a space, </s> for the end. The "
            "model reads only the ids."
        ),
        formulas.TOKENS,
        Prose(
            f"Shapes: ids ({len(explanation.source)}), with S = {len(explanation.source)} and "
            f"V = {model.source_vocab_size}."
        ),
        token_rows(
            rows,
            "Look at which words are one token and which are split. The other segmentations are "
            "sampled: the same text with other ids, as subword regularization shows it to a model "
            f"in training{'; ' + made.segmentation_note if made.segmentation_note else ''}.",
        ),
    ]
    if len(word):
        blocks += [
            Prose(
                f"The word {{}} is not in the vocabulary and becomes {len(word)} tokens, so "
                "that no word is unknown:",
                (made.unknown_word,),
            ),
            token_rows([("the word", word)]),
        ]
    shown.page.add_section("Tokenization", *blocks)


# 2


def _add_embeddings(shown: Shown) -> None:
    made, width = shown.all.embeddings, shown.all.model.width
    is_wave = shown.all.model.positions.startswith("sinusoidal")
    permutation = made.permutation
    blocks: list[Block] = [
        Prose(
            "Each id picks a row of the embedding matrix. The layers see a set of vectors without "
            "an order, therefore a vector for the position is added to each."
        ),
        *([formulas.POSITIONS] if is_wave else []),
        formulas.INPUT,
        Prose(
            f"Shapes: embedding + position = input, each ({len(shown.all.source)}, {width}); here "
            f"the factor of the embedding is {made.scale:.4g}."
        ),
        _embedding_strips(shown),
        Prose("The encodings of all positions", heading=True),
        _position_table(shown),
        Prose("Two positions by their distance", heading=True),
        _similarity(shown),
        Prose("Without positions, the order is lost", heading=True),
        Prose(
            "The same tokens in another order: {}", (" ".join(permutation.tokens.pieces),)
        ),
        _permutation(shown),
        Table(
            ["token", "its place, then", "largest difference without positions", "with positions"],
            [
                [piece, f"{i}, {permutation.order.index(i)}",
                 f"{permutation.difference[i]:.2g}",
                 f"{permutation.difference_with_positions[i]:.3g}"]
                for i, piece in enumerate(shown.source)
            ],
            "Difference of the encoder's output for a token, between the two orders",
        ),
    ]  # fmt: skip
    shown.page.add_section("Embeddings and positional encoding", *blocks)


def _strips(
    shown: Shown, strips: Sequence[tuple[str, str, Array]], pieces: Sequence[str], *, shares: bool
) -> Json:
    """Return vectors of tokens side by side as strips of numbers.

    Args:
        shown: the page.
        strips: name of the data, title and numbers of each strip, (N, D).
        pieces: the tokens.
        shares: True if equal colors mean equal numbers.
    """
    maps = []
    for place, (name, title, values) in enumerate(strips):
        values = cut(cut(values, axis=0, to=len(pieces)), axis=1, to=MAX_COLUMNS)
        shown.add(name, values, token=pieces, column=0)
        tokens = _tokens_axis("token", pieces, "token", size=18)
        if place:
            tokens = Axis(name="token", meaning="token", texts=pieces, size=18, hidden=True)
        columns = _strip_axis(values.shape[1], (_WIDTH - 100) / len(strips), title="")
        maps.append(heat_map(name, tokens, columns, HeatMapStyle(title=title, value="value")))
    return beside(*maps, shares=shares)


def _first_columns(width: int) -> str:
    return f" (the first {MAX_COLUMNS} of {width} columns)" if width > MAX_COLUMNS else ""


def _embedding_strips(shown: Shown) -> Chart:
    made, width = shown.all.embeddings, shown.all.model.width
    strips = [("embedding", "embedding", made.embedding), ("input", "= input", made.input)]
    if made.positions is not None:
        strips.insert(1, ("position", "+ position", made.positions))
    return Chart(
        _strips(shown, strips, shown.source, shares=True),
        f"Strips of numbers, one row for each of {' '.join(map(one_line, shown.source))}: the "
        "embedding, the position and their sum, the input of the first layer.",
        f"Look at a token that occurs twice: its embedding is the same, its input is not"
        f"{_first_columns(width)}.",
        lists_numbers=False,
    )


def _position_table(shown: Shown) -> Chart:
    made = shown.all.embeddings
    rows = made.table[:MAX_COLUMNS]
    width = rows.shape[1]
    pairs = np.unique(np.linspace(0, width // 2 - 1, min(width // 2, 40)).round().astype(int))
    columns = np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()
    names = [str(column) for column in columns]
    shown.add("positions", rows[:, columns], position=0, column=names)
    table = heat_map(
        "positions",
        Axis(name="position", title="position", numbered=True, size=7),
        Axis(name="column", title="column", texts=names, size=8),
        HeatMapStyle(value="value", highest=float(np.abs(rows).max())),
    )
    is_wave = shown.all.model.positions.startswith("sinusoidal")
    caption = (
        "Look at a column from top to bottom: a wave, fast at the left and slow at the right, so "
        "that each position has a pattern of its own."
        if is_wave
        else "Look at how the vectors of neighboring positions resemble each other."
    )
    part = f" {len(columns)} of {width} columns are shown." if len(columns) < width else ""
    return Chart(
        table,
        f"Encodings of positions 0 to {len(rows) - 1}; numbers from {rows.min():.3g} to "
        f"{rows.max():.3g}.",
        caption + part,
        lists_numbers=False,
    )


def _similarity(shown: Shown) -> Chart:
    made = shown.all.embeddings
    shown.page.add_data(
        "similarity",
        Columns({
            "distance": list(range(len(made.similarity))),
            "mean": made.similarity.tolist(),
            "lowest": made.lowest_similarity.tolist(),
            "highest": made.highest_similarity.tolist(),
        }),
    )  # fmt: skip
    x: Json = {"field": "distance", "type": "quantitative", "title": "distance of two positions"}
    y: Json = {"type": "quantitative", "title": "cosine of their encodings"}
    tooltip = [
        {"field": name, "format": ".6f"} if name != "distance" else {"field": name}
        for name in ("distance", "mean", "lowest", "highest")
    ]
    near, far = made.similarity[1], made.similarity[-1]
    chart: Json = {
        "data": named("similarity"), "width": "container", "height": 200,
        "layer": [
            {"mark": {"type": "area", "opacity": 0.2},
             "encoding": {"x": x, "y": y | {"field": "lowest"}, "y2": {"field": "highest"}}},
            {"mark": {"type": "line", "point": {"size": 16}},
             "encoding": {"x": x, "y": y | {"field": "mean"}, "tooltip": tooltip}},
        ],
    }  # fmt: skip
    return Chart(
        chart,
        f"Similarity of two positions by their distance: 1 at distance 0, {near:.3f} at 1, "
        f"{far:.3f} at distance {len(made.similarity) - 1}.",
        "Look at how the similarity falls with the distance: near positions are alike, whichever "
        "they are. The area has the least and the greatest of all pairs.",
    )


def _permutation(shown: Shown) -> Chart:
    made = shown.all.embeddings.permutation
    strips = [
        ("unordered", "in order", made.vectors),
        ("permuted", "permuted", made.permuted_vectors),
    ]
    return Chart(
        _strips(shown, strips, shown.source, shares=True),
        "The encoder's output without positions for both orders, each row for the same token: the "
        f"largest difference is {float(made.difference.max()):.2g}. With positions it is "
        f"{float(made.difference_with_positions.max()):.3g}.",
        "The encoder's output without positions. Look at both sides: a token has the same vector "
        "in either order, up to rounding.",
        lists_numbers=False,
    )


# 3


def _lines(
    shown: Shown, group: str, weights: Floats, names: tuple[Sequence[str], Sequence[str], str]
) -> Lines:
    queries, keys, title = names
    return Lines(
        name=f"{group}-weights-all", weights=weights, group=group, queries=queries, keys=keys,
        layer=shown.all.layer, head=shown.all.head,
        query=_telling_row(weights.values[shown.all.layer, shown.all.head], queries), title=title,
    )  # fmt: skip


def _telling_row(weights: Array, queries: Sequence[str]) -> int:
    """Return the query to show first: a pronoun, or the one with the greatest weight on another.

    Weights on itself and on the last token, </s>, are not looked at.
    """
    for place, piece in enumerate(queries):
        if piece.strip("▁").lower() in _PRONOUNS:
            return place
    others = weights.copy()
    if others.shape[0] == others.shape[1]:
        np.fill_diagonal(others, 0)
    if others.shape[1] > 2:
        others[:, -1] = 0
    return int(others.max(axis=1).argmax())


def _attends(weights: Array, queries: Sequence[str], keys: Sequence[str]) -> str:
    """Return for each query what it attends to most, in words."""
    return "; ".join(
        f"{one_line(query)} attends most to {one_line(keys[int(row.argmax())])} ({row.max():.3f})"
        for query, row in zip(queries, weights, strict=True)
    )


def _place(shown: Shown) -> str:
    """Return the layer and the head that are picked at first."""
    return f"layer {shown.all.layer + 1}, head {shown.all.head + 1}"


def _shape(array: Array) -> str:
    return f"({', '.join(map(str, array.shape))})"


def _add_self_attention(shown: Shown) -> None:
    layers, pieces = shown.all.self_attention, shown.source
    first = layers[shown.all.layer]
    weights = shown.add_heads(
        "encoder-weights", [a.weights for a in layers], "encoder", query=pieces, key=pieces
    )
    shown.add_heads(
        "encoder-scores", [a.scores for a in layers], "encoder", query=pieces, key=pieces
    )
    for part in ("query", "key", "value", "heads"):
        arrays = [getattr(attention, part) for attention in layers]
        shown.add_heads(f"encoder-{part}", arrays, "encoder", token=pieces, column=())
    lines = _lines(shown, "encoder", weights, (pieces, pieces, "encoder self-attention"))
    shape = _shape(first.query)
    blocks: list[Block] = [
        Prose(
            "Each token has a query, a key and a value. The "
            "products of queries and keys are divided by √d_k, the softmax makes weights of them "
            "that sum to 1, and each token gets the weighted sum of the values."
        ),
        formulas.ATTENTION,
        Prose(
            f"Shapes, as (heads, tokens, d_k): Q, K, V {shape}; QKᵀ and the weights "
            f"{_shape(first.weights)}; the weighted sum of V {_shape(first.heads)}."
        ),
        Prose("Encoder self-attention of all layers and heads", heading=True),
        attention_picker(
            lines,
            "Pick a layer and a head by a click or by the arrow keys; the pictures below follow. "
            "Look at how heads differ: some read the neighbor, some a word far away, some </s>.",
        ),
        Prose("What a word attends to", heading=True),
        attention_lines(
            lines,
            "Pick a word at the left by a click or by the arrow keys. Look at the thickest line: "
            "it leads to what the head reads most at this word.",
        ),
        *_steps(shown, first),
    ]
    shown.page.add_section("Scaled dot-product attention", *blocks)


def _steps(shown: Shown, attention: Attention) -> list[Block]:
    """Return the steps of one head of the encoder, which follow the picker."""
    pieces, width = shown.source, attention.query.shape[2]
    root = width**0.5
    columns = _strip_axis(width, (_WIDTH - 100) / 3, title=f"d_k = {width}")
    rows = _tokens_axis("token", pieces, "token", size=18)
    bare = Axis(name="token", meaning="token", texts=pieces, size=18, hidden=True)
    strips = beside(
        *(
            heat_map(f"encoder-{part}", rows if place == 0 else bare, columns,
                     HeatMapStyle(title=title))
            for place, (part, title) in enumerate(
                (("query", "Q, what a token asks"), ("key", "K, what it answers"),
                 ("value", "V, what it hands over"))
            )
        ),
        shares=False,
    )  # fmt: skip
    size = max(10.0, min(22.0, 250 / len(pieces)))
    queries = _tokens_axis("query", pieces, "query", title="query", size=size)
    hidden = Axis(name="query", meaning="query", texts=pieces, size=size, hidden=True)
    keys = _tokens_axis("key", pieces, "key", title="key", size=size)
    products = beside(
        heat_map("encoder-scores", queries, keys,
                 HeatMapStyle(title="QKᵀ", value="product", formula=f"datum.value * {root!r}")),
        heat_map("encoder-scores", hidden, keys, HeatMapStyle(title="QKᵀ / √d_k", value="score")),
        shares=True,
    )  # fmt: skip
    large = max(10.0, min(34.0, 560 / len(pieces)))
    weights = heat_map(
        "encoder-weights",
        _tokens_axis("query", pieces, "query", title="query", size=large),
        _tokens_axis("key", pieces, "key", title="key", size=large),
        HeatMapStyle(title="softmax(QKᵀ / √d_k)", value="weight", highest=1, sums=True,
             has_numbers=True),
    )  # fmt: skip
    wide = _strip_axis(width, _WIDTH - 150, title=f"d_v = {width}")
    head = shown.all.head
    own = attention.weights[head, : len(pieces), : len(pieces)]
    return [
        Prose("Step by step for the picked head", heading=True),
        Chart(strips, f"Strips Q, K and V of {len(pieces)} tokens.",
              "Look at two tokens whose strips in Q and K agree in color: their product is great.",
              lists_numbers=False),
        Chart(products, "Products of queries and keys, and the same divided by the square root of "
              f"{width}.", f"Look at the colors: both maps have one scale, and the division by "
              f"√{width} = {root:.4g} keeps the softmax from saturating.", lists_numbers=False),
        Chart(weights, f"Weights of {_place(shown)}: {_attends(own, pieces, pieces)}.",
              "Look at the rows: each is a distribution with Σ = 1, the number at its end."),
        Chart(heat_map("encoder-heads", rows, wide, HeatMapStyle(title="softmax(QKᵀ / √d_k) V")),
              "The weighted sums of V, one row a token.",
              "Look at two tokens with like rows of weights: they get like vectors.",
              lists_numbers=False),
    ]  # fmt: skip


# 4


def _add_masked_self_attention(shown: Shown) -> None:
    layers, pieces = shown.all.masked_self_attention, shown.reads
    weights = shown.add_heads(
        "masked-weights", [a.weights for a in layers], "masked", query=pieces, key=pieces
    )
    shown.add_heads("masked-scores", [a.scores for a in layers], "masked", query=pieces, key=pieces)
    size = max(12.0, min(34.0, 560 / len(pieces)))
    queries = _tokens_axis("query", pieces, "query", title="query", size=size)
    keys = _tokens_axis("key", pieces, "key", title="key", size=size)
    before = heat_map(
        "masked-scores",
        queries,
        keys,
        HeatMapStyle(title="QKᵀ / √d_k + M", value="score", marks_infinity=True, has_numbers=True),
    )
    after = heat_map(
        "masked-weights",
        queries,
        keys,
        HeatMapStyle(title="softmax(QKᵀ / √d_k + M)", value="weight", highest=1, sums=True,
             has_numbers=True),
    )  # fmt: skip
    first = layers[shown.all.layer]
    own = first.weights[shown.all.head, : len(pieces), : len(pieces)]
    place = _place(shown)
    shown.page.add_section(
        "Masked self-attention",
        Prose(
            "The decoder must not read what it has not written yet. The mask M puts −∞ above the "
            "diagonal before the softmax, which makes exact zeros of it."
        ),
        formulas.MASKED,
        Prose(
            f"Shapes: Q, K, V {_shape(first.query)}; scores, mask and weights "
            f"{_shape(first.weights)}, with T = {len(shown.all.target_input)} target tokens, "
            "shifted right."
        ),
        attention_picker(
            _lines(shown, "masked", weights, (pieces, pieces, "masked self-attention")),
            "Masked self-attention of all layers and heads. Pick one by a click or by the arrow "
            "keys.",
        ),
        Chart(
            before,
            f"The triangle before the softmax in {place}: above the diagonal the scores are −∞.",
            "Look at the triangle: −∞ wherever a key is later than its query.",
            lists_numbers=False,
        ),
        Chart(
            after,
            f"The triangle after the softmax in {place}: 0 above the diagonal. "
            f"{_attends(own, pieces, pieces)}.",
            "Look at the same triangle: exact zeros, and each row still has Σ = 1.",
            lists_numbers=False,
        ),
    )


# 5


def _add_cross_attention(shown: Shown) -> None:
    layers = shown.all.cross_attention
    weights = shown.add_heads(
        "cross-weights", [a.weights for a in layers], "cross", query=shown.reads, key=shown.source
    )
    chosen = layers[shown.all.alignment_layer]
    mean = chosen.weights.mean(axis=0)[: len(shown.writes), : len(shown.source)]  # (T, S)
    shown.add("alignment", mean, target=shown.writes, source=shown.source)
    size = max(10.0, min(24.0, 520 / max(len(shown.source), len(shown.writes))))
    lines = _lines(
        shown, "cross", weights, (shown.reads, shown.source, "encoder-decoder attention")
    )
    keys = _tokens_axis("key", shown.source, "source token", title="key: source", size=size)
    one = heat_map(
        "cross-weights",
        _tokens_axis(
            "query", shown.reads, "decoder reads", title="query: decoder reads", size=size
        ),
        keys,
        HeatMapStyle(
            title="softmax(QKᵀ / √d_k) of the picked head", value="weight", highest=1, sums=True
        ),
    )
    alignment = heat_map(
        "alignment",
        _tokens_axis("target", shown.writes, "decoder writes", title="decoder writes", size=size),
        _tokens_axis("source", shown.source, "source token", title="source", size=size),
        HeatMapStyle(value="weight", highest=1, sums=True),
    )
    own = layers[shown.all.layer].weights[shown.all.head][: len(shown.reads), : len(shown.source)]
    shown.page.add_section(
        "Encoder-decoder attention",
        Prose(
            "The queries are from the decoder, the keys and the values from the encoder's output: "
            "each target token reads the source."
        ),
        formulas.CROSS,
        Prose(
            f"Shapes: Q {_shape(chosen.query)}; K, V {_shape(chosen.key)}; weights "
            f"{_shape(chosen.weights)}."
        ),
        Prose("As an alignment", heading=True),
        Chart(
            alignment,
            f"Alignment: {_attends(mean, shown.writes, shown.source)}.",
            f"The mean of the heads of decoder layer {shown.all.alignment_layer + 1}, as `tfm "
            "translate --alignment` has it. Look for the diagonal, and where word order departs "
            "from it.",
        ),
        Prose("All layers and heads", heading=True),
        attention_picker(lines, "Pick a layer and a head by a click or by the arrow keys."),
        attention_lines(
            lines,
            "Pick a token that the decoder reads. Look at the source token to which the thickest "
            "line leads: usually the one that is translated next.",
        ),
        Chart(
            one,
            f"Weights of {_place(shown)}: {_attends(own, shown.reads, shown.source)}.",
            "Look at how heads share the work: one follows the words, another the end of the "
            "sentence.",
            lists_numbers=False,
        ),
    )


# 6


def _add_multi_head(shown: Shown) -> None:
    made = shown.all.multi_head
    attention = shown.all.self_attention[made.layer]
    heads, _, width = attention.heads.shape
    shown.page.add_section(
        "Multi-head attention",
        Prose(
            f"The {heads} heads of encoder layer {made.layer + 1} work side by side, each with "
            "projections of its own. Their vectors are concatenated, and Wᴼ mixes them."
        ),
        formulas.MULTI_HEAD,
        Prose(
            f"Shapes: {heads} heads {_shape(attention.heads[0])} each; concatenated "
            f"{_shape(made.concatenated)}; Wᴼ {_shape(made.output_weight)}; output "
            f"{_shape(made.output)}."
        ),
        Chart(
            _side_by_side(shown, made.layer, heads, width),
            f"The vectors of {heads} heads side by side, one row a token.",
            "Look at how the heads differ at one token: each hands over something else.",
            lists_numbers=False,
        ),
        Chart(
            _output(shown),
            "A part of Wᴼ, and the output of multi-head attention, one row a token.",
            f"Wᴼ by rows of each head, evenly chosen, and the output"
            f"{_first_columns(shown.all.model.width)}. Look at the rows of one head: they carry it "
            "into all columns of the output.",
            lists_numbers=False,
        ),
        Chart(
            _contributions(shown),
            "The length of what each head adds to the output of each token.",
            "The length of head_i times its rows of Wᴼ. Look at which head writes most to a token.",
        ),
    )


def _side_by_side(shown: Shown, layer: int, heads: int, width: int) -> Json:
    maps = []
    array = shown.page.data("encoder-heads-all")
    assert isinstance(array, Floats)
    for head in range(heads):
        name = f"head-{head + 1}"
        shown.page.add_data(name, Part("encoder-heads-all", array, (layer, head)))
        rows = Axis(name="token", meaning="token", texts=shown.source, size=18, hidden=head > 0)
        columns = _strip_axis(width, (_WIDTH - 100) / heads - 8, title="")
        maps.append(heat_map(name, rows, columns, HeatMapStyle(title=f"head {head + 1}")))
    return beside(*maps, shares=True, spacing=6)


def _output(shown: Shown) -> Json:
    made, pieces = shown.all.multi_head, shown.source
    heads = shown.all.model.encoder_heads
    width = made.output_weight.shape[0] // heads
    each = max(1, min(width, 48 // heads))
    within = np.linspace(0, width - 1, each).round().astype(int)
    rows = (np.arange(heads)[:, None] * width + within).ravel()  # (H · each,)
    names = [f"head {row // width + 1}, {row % width}" for row in rows]
    shown.add("output-weight", made.output_weight[rows][:, :MAX_COLUMNS], row=names, column=0)
    shown.add("heads-output", made.output[: len(pieces), :MAX_COLUMNS], token=pieces, column=0)
    columns = _strip_axis(min(MAX_COLUMNS, made.output.shape[1]), 280, title="")
    size = max(7.0, min(18.0, 18.0 * len(pieces) / len(rows)))
    return beside(
        heat_map("output-weight", Axis(name="row", meaning="row", texts=names, size=size), columns,
                 HeatMapStyle(title="Wᴼ")),
        heat_map("heads-output", _tokens_axis("token", pieces, "token", size=18), columns,
                 HeatMapStyle(title="Concat(head₁, …) Wᴼ")),
        shares=False,
    )  # fmt: skip


def _contributions(shown: Shown) -> Json:
    lengths = np.linalg.norm(shown.all.multi_head.contributions, axis=2)[:, : len(shown.source)]
    names = [f"head {head + 1}" for head in range(len(lengths))]
    shown.add("contributions", lengths, head=names, token=shown.source)
    size = max(12.0, min(36.0, 560 / len(shown.source)))
    return heat_map(
        "contributions",
        Axis(name="head", meaning="head", texts=names, size=22),
        _tokens_axis("token", shown.source, "token", size=size),
        HeatMapStyle(value="length"),
    )


# 7


def _add_add_and_norm(shown: Shown) -> None:
    made, model = shown.all.add_and_norm, shown.all.model
    steps = [step for step in made.encoder if step.layer == shown.all.layer]
    activation = model.activation
    blocks: list[Block] = [
        Prose(
            "Each sub-layer adds its result to the residual stream of a token; the norm "
            f"({norm_name(model.norm)}) brings the numbers of each token to one mean and one "
            "deviation, then scales them by its gain and bias. The feed-forward layer works on "
            "each token alone."
        ),
        formulas.add_and_norm(model.norm, activation),
        Prose(
            f"Shapes: the stream {_shape(steps[0].input)}; inside the feed-forward layer "
            f"({len(shown.all.source)}, {model.encoder_feed_forward_width}); mean and deviation "
            f"({len(shown.all.source)}), one for each token."
        ),
    ]
    for step in steps:
        blocks += _add_and_norm(shown, step)
    blocks += [
        _statistics(shown, steps[-1]),
        Prose("Mean and deviation through the stack", heading=True),
        _deviations(shown),
        Prose(
            "The norm is per token and not per batch: in a batch with another sentence, the "
            f"encoder's output for this one differs by {made.batch_difference:.2g} at most, which "
            "is no more than rounding."
        ),
    ]
    shown.page.add_section("Add & norm, feed-forward", *blocks)


def _add_and_norm(shown: Shown, step: AddAndNorm) -> list[Block]:
    """Return the pictures of one add & norm of the encoder."""
    label = step.sublayer_name.replace("_", "-")
    name = f"norm-{label}"
    strips = [
        (f"{name}-input", "x", step.input),
        (f"{name}-sublayer", "+ sub-layer", step.sublayer),
        (f"{name}-sum", "= sum", step.sum),
        (f"{name}-after", "after the norm" if step.output is not step.sum else "norm", step.after),
    ]
    return [
        Prose(f"Encoder layer {step.layer + 1}: {label}", heading=True),
        Chart(
            _strips(shown, strips, shown.source, shares=False),
            f"The residual stream of each token before and after the {label} sub-layer.",
            "Look at how little the sum differs from x where the sub-layer is pale: the stream "
            f"carries a token on{_first_columns(step.input.shape[1])}.",
            lists_numbers=False,
        ),
    ]


def _statistics(shown: Shown, step: AddAndNorm) -> Table:
    """Return mean and deviation of each token, before and after a norm."""
    rows = zip(
        shown.source, step.mean_before, step.deviation_before, step.mean_after,
        step.deviation_after, strict=False,
    )  # fmt: skip
    return Table(
        ["token", "mean before", "deviation before", "mean after", "deviation after"],
        [[piece, *(f"{float(each):.6f}" for each in numbers)] for piece, *numbers in rows],
        "Over the numbers of each token, before and after this norm",
    )


def _deviations(shown: Shown) -> Chart:
    rows: list[tuple[Value, ...]] = []
    order = []
    for step in shown.all.add_and_norm.encoder:
        label = f"{step.layer + 1} {step.sublayer_name.replace('_', '-')}"
        order.append(label)
        for token, piece in enumerate(shown.source):
            for place, values in (
                ("mean, before", step.mean_before), ("mean, after", step.mean_after),
                ("deviation, before", step.deviation_before),
                ("deviation, after", step.deviation_after),
            ):  # fmt: skip
                rows.append((label, piece, token, place, float(values[token])))
    names = ("step", "token", "number", "place", "value")
    shown.page.add_data("deviations", _columns(names, rows))
    places = ["mean, before", "mean, after", "deviation, before", "deviation, after"]
    chart: Json = {
        "data": named("deviations"),
        "facet": {"field": "place", "type": "nominal", "sort": places, "title": None},
        "columns": 2,
        "spec": {
            "width": 270, "height": 130,
            "mark": {"type": "point", "filled": True, "size": 26, "opacity": 0.6},
            "encoding": {
                "x": {"field": "step", "type": "ordinal", "sort": order, "title": None,
                      "axis": {"labelAngle": -40}},
                "y": {"field": "value", "type": "quantitative", "title": None},
                "tooltip": [{"field": "token"}, {"field": "step"}, {"field": "place"},
                            {"field": "value", "format": ".6f"}],
            },
        },
        "resolve": {"scale": {"y": "independent"}},
    }  # fmt: skip
    return Chart(
        chart,
        "Mean and deviation of each token before and after each norm of the encoder.",
        "A point is a token. Look at how far the points are apart before a norm, and how close "
        "they are after it.",
        lists_numbers=False,
    )


# 8


def _add_refinement(shown: Shown) -> None:
    made = shown.all.refinement
    rows: list[tuple[Value, ...]] = []
    for layer, candidates in enumerate(made.layers):
        for t, expected in enumerate(shown.writes):
            pairs = zip(candidates.pieces[t], candidates.probabilities[t].tolist(), strict=True)
            best = list(pairs)
            rows.append((
                t, layer + 1, expected, best[0][0], best[0][1],
                ", ".join(f"{one_line(piece)} {p:.4f}" for piece, p in best),
                float(made.target_probability[layer, t]), int(made.target_rank[layer, t]),
                float(made.entropy[layer, t]),
            ))  # fmt: skip
    names = ("position", "layer", "expected", "piece", "probability", "best", "of_expected", "rank",
             "entropy")  # fmt: skip
    shown.page.add_data("lens", _columns(names, rows))
    layers = len(made.layers)
    shown.page.add_section(
        "Progressive refinement",
        Prose(
            "What the model would write after each decoder layer: the vectors of the layer go "
            "through the output matrix as if it were the last one. The last column is the model's "
            "own distribution."
        ),
        formulas.LENS,
        Prose(
            f"Shapes: h_l ({len(shown.all.target)}, {shown.all.model.width}); W_out "
            f"({shown.all.model.width}, {shown.all.model.target_vocab_size}); P_l "
            f"({len(shown.all.target)}, {shown.all.model.target_vocab_size})."
        ),
        Chart(
            _lens_chart(shown, layers),
            "; ".join(f"after layer {n}: {one_line(text)}" for n, text in enumerate(made.texts, 1)),
            "The likeliest token at each position, the stronger the color the likelier; bold is "
            "the token that is to be written. Look at the layer from which a row is right.",
            lists_numbers=False,
        ),
        Table(
            ["layer", "its likeliest tokens as text"],
            [[str(n), text] for n, text in enumerate(made.texts, 1)],
        ),
    )


def _lens_chart(shown: Shown, layers: int) -> Json:
    rows = Axis(name="position", texts=shown.writes, title="to be written", size=22)
    axis = {"title": "after decoder layer", "orient": "top", "labelAngle": 0, "domain": False,
            "ticks": False}  # fmt: skip
    place = {
        "x": {"field": "layer", "type": "ordinal", "axis": axis},
        "y": rows.encoding(is_row=True),
    }
    tooltip = [
        {"field": "expected", "title": "to be written"}, {"field": "layer", "title": "after layer"},
        {"field": "best", "title": "likeliest"},
        {"field": "of_expected", "title": "probability of what is to be written", "format": ".6f"},
        {"field": "rank", "title": "its rank"},
        {"field": "entropy", "title": "entropy in bits", "format": ".4f"},
    ]  # fmt: skip
    return {
        "data": named("lens"),
        "width": {"step": max(64, min(130, 600 / layers))},
        "height": {"step": 22},
        "layer": [
            {
                "mark": {"type": "rect", "fill": color("series-1"), "stroke": color("grid"),
                         "strokeOpacity": 1},
                "encoding": {
                    **place,
                    "fillOpacity": {
                        "field": "probability", "type": "quantitative", "legend": None,
                        "scale": {"domain": [0, 1], "range": [0, 0.4]},
                    },
                    "tooltip": tooltip,
                },
            },
            {
                "mark": {"type": "text", "fontSize": 12, "limit": 120},
                "encoding": {
                    **place,
                    "text": {"field": "piece"},
                    "color": {"value": color("ink")},
                },
                "transform": [{"filter": "datum.piece != datum.expected"}],
            },
            {
                "mark": {"type": "text", "fontSize": 12, "limit": 120, "fontWeight": "bold"},
                "encoding": {
                    **place,
                    "text": {"field": "piece"},
                    "color": {"value": color("ink")},
                },
                "transform": [{"filter": "datum.piece == datum.expected"}],
            },
        ],
    }  # fmt: skip


# 9


def _add_teacher_forcing(shown: Shown) -> None:
    made, target = shown.all.teacher_forcing, shown.all.target
    whose = "the given target" if made.is_given else "the model's own translation"
    rows = [
        [str(t), reads, writes, f"{made.probability[t]:.6f}", f"{made.loss[t]:.6f}",
         f"{one_line(made.best.pieces[t][0])} {made.best.probabilities[t][0]:.4f}"]
        for t, (reads, writes) in enumerate(zip(shown.reads, shown.writes, strict=True))
    ]  # fmt: skip
    smoothing = (
        f" With the label smoothing of its training, {made.label_smoothing:g}, it is "
        f"{made.smoothed_loss:.6f}."
        if made.label_smoothing
        else ""
    )
    blocks: list[Block] = [
        Prose(
            f"In training, all positions are computed at once: the decoder reads {whose}, shifted "
            "right by one, and each position should write the next token."
        ),
        formulas.LOSS,
        Prose("Target: {}", (shown.all.target_text,)),
        Prose(
            f"Shapes: input ({len(target)}), logits ({len(target)}, "
            f"{shown.all.model.target_vocab_size}), loss ({len(target)})."
        ),
        _losses(shown),
        Table(["position", "reads", "should write", "probability", "loss", "likeliest"], rows),
        Prose(
            f"The losses sum to {made.total_loss:.6f}, which training minimizes; the perplexity, "
            f"exp of their mean, is {made.perplexity:.4f}.{smoothing}"
        ),
    ]  # fmt: skip
    if made.changed_position >= 0:
        blocks += [Prose("A later token changes no earlier column", heading=True), _changed(shown)]
    shown.page.add_section("Teacher forcing", *blocks)


def _bars(data: str, pieces: Sequence[str], value: Json, tooltip: list[Json]) -> Json:
    """Return a bar for each position."""
    size = max(10.0, min(32.0, 620 / len(pieces)))
    position = Axis(name="position", texts=pieces, size=size).encoding(is_row=False)
    position["axis"] |= {"orient": "bottom"}
    return {
        "data": named(data), "width": {"step": size}, "height": 150,
        "mark": {"type": "bar", "minBandSize": 1},
        "encoding": {"x": position, "y": value, "tooltip": tooltip},
    }  # fmt: skip


def _losses(shown: Shown) -> Chart:
    made = shown.all.teacher_forcing
    count = len(shown.writes)
    shown.page.add_data(
        "losses",
        Columns({
            "position": list(range(count)), "reads": shown.reads, "writes": shown.writes,
            "probability": made.probability[:count].tolist(), "loss": made.loss[:count].tolist(),
        }),
    )  # fmt: skip
    tooltip: list[Json] = [
        {"field": "reads"}, {"field": "writes", "title": "should write"},
        {"field": "probability", "format": ".6f"}, {"field": "loss", "format": ".6f"},
    ]  # fmt: skip
    worst = int(made.loss[:count].argmax())
    value = {"field": "loss", "type": "quantitative", "title": "loss, −ln P"}
    return Chart(
        _bars("losses", shown.writes, value, tooltip),
        f"Loss of each token; the greatest is {made.loss[worst]:.4f} at "
        f"{one_line(shown.writes[worst])}.",
        "Look at the highest bar: there the model expected another token.",
        lists_numbers=False,
    )


def _changed(shown: Shown) -> Chart:
    made = shown.all.teacher_forcing
    count = len(shown.writes)
    shown.page.add_data(
        "changed",
        Columns({
            "position": list(range(count)), "reads": shown.reads,
            "difference": made.column_difference[:count].tolist(),
        }),
    )  # fmt: skip
    value = {"field": "difference", "type": "quantitative", "title": "largest |difference|"}
    tooltip: list[Json] = [{"field": "position"}, {"field": "reads"},
                           {"field": "difference", "format": ".6f"}]  # fmt: skip
    place = made.changed_position
    before = float(made.column_difference[: place + 1].max(initial=0))
    was = shown.all.target.pieces[place]
    return Chart(
        _bars("changed", shown.reads, value, tooltip),
        f"Difference of the logits at each position after a change of the token at position "
        f"{place + 1}: at most {before:.2g} before it.",
        f"The decoder reads {one_line(made.changed_to)} in place of {one_line(was)} at position "
        f"{place + 1}. Look at the positions before it: their difference is exactly {before:g}.",
        lists_numbers=False,
    )


# 10


def _add_search(shown: Shown) -> None:
    made = shown.all.search
    comparison = made.comparison
    last = made.steps[-1]
    rows = [
        [str(step.step), step.input, step.chosen, f"{np.exp(step.log_probability):.6f}",
         ", ".join(f"{one_line(p)} {q:.3f}" for p, q in
                   list(zip(step.best_pieces, step.best_probabilities, strict=True))[1:4]),
         " × ".join(map(str, step.cache_shape))]
        for step in made.steps[:MAX_TOKENS]
    ]  # fmt: skip
    kind = _length_norm(comparison)
    blocks: list[Block] = [
        Prose(
            f"The encoder is computed {_times(made.encoder_passes)}, the decoder "
            f"{_times(made.decoder_passes)}, once for each token. Keys and values of earlier steps "
            "are kept, so that a step computes its newest token alone."
        ),
        formulas.score(kind),
        Prose(
            f"Shapes: keys of the source in each layer {last.memory_shape}, computed once; keys of "
            f"the target after {last.step} steps {last.cache_shape}; values have the same. In all "
            f"layers {last.memory_numbers:,} and {last.cache_numbers:,} numbers are kept."
        ),
        Table(
            ["step", "reads", "writes", "probability", "next best", "keys kept in a layer"],
            rows,
            "Greedy search, step by step. Look at a step where the next best is close: there beam "
            "search may go another way.",
        ),
        Prose("Greedy beside beam", heading=True),
        *_comparison(comparison, "this sentence"),
    ]
    if made.example is not None:
        blocks += [
            Prose("Where greedy goes wrong and beam does not", heading=True),
            Prose("Sentence: {}", (made.example.source,)),
            Prose("Reference: {}", (made.example.reference,)),
            Prose(made.example_note[:1].upper() + made.example_note[1:] + "."),
            *_comparison(made.example, "the example"),
        ]
    elif made.example_note:
        blocks.append(Prose(made.example_note[:1].upper() + made.example_note[1:] + "."))
    shown.page.add_section("Inference token by token", *blocks)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _length_norm(comparison: Comparison) -> str:
    """Return the kind of length norm by which a score arose: `power` or `wu`."""
    found = comparison.beam
    power = found.log_probability / len(found.tokens) ** comparison.length_penalty
    return "power" if abs(power - found.score) < 1e-5 else "wu"


def _comparison(comparison: Comparison, what: str) -> list[Block]:
    """Return greedy search beside beam search as a table and as a tree."""
    greedy, beam = comparison.greedy, comparison.beam
    tree = [node for node in comparison.tree if node.step <= MAX_TOKENS]
    verdict = (
        "Both find the same translation."
        if comparison.agree
        else f"Beam search finds a translation that is likelier by a factor of "
        f"{np.exp(beam.log_probability - greedy.log_probability):.3g}."
        if beam.log_probability > greedy.log_probability
        else "Beam search finds a translation with a higher score."
    )

    def row(name: str, found: SearchResult) -> list[str | float]:
        return [name, found.text, str(len(found.tokens)), f"{found.log_probability:.6f}",
                f"{found.score:.6f}"]  # fmt: skip

    return [
        Table(
            ["search", "translation", "tokens", "Σ ln P", "score"],
            [row("greedy", greedy), row(f"beam {comparison.beam_size}", beam)],
            f"Length penalty α = {comparison.length_penalty:g}",
        ),
        Prose(verdict),
        Drawing(
            search_tree(tree, comparison.beam_size),
            f"For {what}: {tree_alternative(tree, comparison.beam_size)}",
            f"The tree of hypotheses with their scores; at each step the best "
            f"{comparison.beam_size} are kept. Look at where the two paths part, and at which of "
            "them has the better score in the end.",
        ),
    ]


# 12


def _add_contrast(shown: Shown, made: Contrast) -> None:
    pairs = zip(shown.source, made.source.pieces, strict=False)
    columns = [one if one == other else f"{one} → {other}" for one, other in pairs]
    rows = ["input", *(f"layer {n}" for n in range(1, len(made.shares)))]
    shown.add("contrast", made.shares[:, : len(columns)], layer=rows, position=columns)
    picture = heat_map(
        "contrast",
        Axis(name="layer", title="replaced after", texts=rows, size=26),
        _tokens_axis("position", columns, "source token", size=26),
        HeatMapStyle(value="share of the way", highest=1, has_numbers=True),
    )
    last = made.shares[-1, : len(columns)]
    most = int(last.argmax())
    shown.page.add_section(
        "What carries the difference",
        Prose("Attention weights show where a head looks, not what follows from it. Here one "
              "vector of the encoder is replaced by the one that another sentence has in its "
              "place, and the effect on the next token is measured."),
        Prose("The other sentence: {}", (made.sentence,)),
        Prose(
            "After {}, the sentence goes on with {} and the other one with {}. The log-odds of the "
            f"first against the second are {made.log_odds:.3f} here and {made.other_log_odds:.3f} "
            "there. A cell is the share of the way between them that is gone when its vector is "
            "replaced: 1 where it alone decides, 0 where it changes nothing.",
            (made.prefix or "the start", *made.tokens.pieces),
        ),
        Prose(f"Shapes: vectors ({shown.all.model.width}); cells {_shape(made.shares)}."),
        Chart(
            picture,
            f"Shares of the way. After the last layer the largest is {last[most]:.2f}, at "
            f"{one_line(columns[most])}.",
            "Look at the row from which another column than that of the changed word is dark: "
            "there the encoder has moved what decides to another token.",
        ),
        Prose("Source of the method: Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, "
              "arXiv:2202.05262."),
    )  # fmt: skip
