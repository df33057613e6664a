"""The tree of a beam search as SVG: a row for each time step, greedy's path and beam's path."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tfm_cli.console import one_line
from tfm_cli.pictures.charts import FONT, color
from tfm_cli.pictures.explanation import Node
from tfm_cli.pictures.sheet import text_width

_ROW = 58  # pixels from one step to the next
_TOP = 64  # of the first row, below the legend
_LEFT = 64  # of the first place, beside the numbers of the steps
_BOX_HEIGHT = 36
_WIDEST, _NARROWEST = 92, 60  # pixels of a place in a row
_WIDTH = 736


@dataclass(frozen=True)
class PlacedNode:
    """A hypothesis with its place in the drawing."""

    index: int
    node: Node
    x: float
    y: float


def search_tree(tree: Sequence[Node], beam_size: int) -> str:
    """Return the tree of hypotheses as an SVG image.

    Args:
        tree: all candidates, parents before children.
        beam_size: hypotheses that are kept at each step.
    """
    places = max(2 * beam_size, 4)
    slot = min(_WIDEST, max(_NARROWEST, _WIDTH / places))
    rows = _rows(tree, places)
    spots = _spots(rows, slot)
    width = _LEFT + slot * max(map(len, rows)) + 8
    width, height = max(width, 560), _TOP + _ROW * len(rows)
    parts = [_legend(), _steps(len(rows))]
    for spot in spots.values():
        if spot.node.parent in spots:
            parts.append(_branch(spots[spot.node.parent], spot))
    parts += [_box(spot, slot, tree) for spot in spots.values()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tree" width="{width:.0f}" '
        f'height="{height}" viewBox="0 0 {width:.0f} {height}" font-family="{FONT}">'
        f"{''.join(parts)}</svg>"
    )


def _rows(tree: Sequence[Node], places: int) -> list[list[tuple[int, Node]]]:
    """Return the hypotheses of each step, ordered by their parents, so that no branches cross."""
    rows: list[list[tuple[int, Node]]] = []
    order: dict[int, int] = {-1: 0}  # place of a hypothesis in its row
    for step in range(max(node.step for node in tree) + 1):
        found = [(i, node) for i, node in enumerate(tree) if node.step == step]
        found.sort(key=lambda each: (_is_dropped(each[1]), -each[1].score))
        found = found[:places]
        found.sort(key=lambda each: (order.get(each[1].parent, 0), -each[1].score))
        order |= {i: place for place, (i, _) in enumerate(found)}
        rows.append(found)
    return rows


def _is_dropped(node: Node) -> bool:
    return node.state == "dropped" and not node.is_greedy


def _spots(rows: Sequence[Sequence[tuple[int, Node]]], slot: float) -> dict[int, PlacedNode]:
    """Return the places; a row is centered below its parents as far as it fits."""
    most = max(map(len, rows))
    spots: dict[int, PlacedNode] = {}
    for step, row in enumerate(rows):
        parents = [spots[node.parent].x for _, node in row if node.parent in spots]
        middle = sum(parents) / len(parents) if parents else _LEFT + slot * most / 2
        start = middle - slot * len(row) / 2
        start = min(max(start, _LEFT), _LEFT + slot * (most - len(row)))
        for place, (index, node) in enumerate(row):
            x = start + slot * (place + 0.5)
            spots[index] = PlacedNode(index, node, x, _TOP + _ROW * step)
    return spots


def _legend() -> str:
    entries = [
        ("path of beam search", _line(0, 0, 30, 0, color("series-1"), 4)),
        ("path of greedy search", _line(0, 0, 30, 0, color("series-2"), 3, "6 4")),
        ("kept", _line(0, 0, 30, 0, color("line"), 1.5)),
        ("dropped", _line(0, 0, 30, 0, color("line"), 1, "1 3")),
    ]
    parts, x = [], 8.0
    for text, line in entries:
        parts.append(
            f'<g transform="translate({x:.0f} 14)">{line}'
            f'<text x="36" y="4" font-size="12" fill="{color("muted")}">{text}</text></g>'
        )
        x += 36 + 12 * text_width(text) + 22
    return "".join(parts)


def _steps(count: int) -> str:
    head = f'<text x="8" y="{_TOP - 26}" font-size="12" fill="{color("muted")}">step</text>'
    return head + "".join(
        f'<text x="30" y="{_TOP + _ROW * step + 16}" font-size="12" text-anchor="end" '
        f'fill="{color("muted")}">{step}</text>'
        for step in range(count)
    )


def _line(
    x: float, y: float, to_x: float, to_y: float, stroke: str, width: float, dash: str = ""
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    bend = (to_y - y) / 2
    path = f"M{x:.1f} {y:.1f}C{x:.1f} {y + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} "
    return (
        f'<path d="{path}{to_y:.1f}" fill="none" stroke="{stroke}" stroke-width="{width}"{dashes}/>'
    )


def _branch(parent: PlacedNode, spot: PlacedNode) -> str:
    """Return the line from a hypothesis to its parent; both paths are beside each other."""
    start, end = parent.y + _BOX_HEIGHT, spot.y
    node = spot.node
    lines = []
    if node.is_best:
        shift = -3 if node.is_greedy else 0
        lines.append((shift, color("series-1"), 4.0, ""))
    if node.is_greedy:
        shift = 3 if node.is_best else 0
        lines.append((shift, color("series-2"), 3.0, "6 4"))
    if not lines:
        is_dropped = node.state == "dropped"
        lines.append((0, color("line"), 1.0 if is_dropped else 1.5, "1 3" if is_dropped else ""))
    return "".join(
        _line(parent.x + shift, start, spot.x + shift, end, stroke, width, dash)
        for shift, stroke, width, dash in lines
    )


def _box(spot: PlacedNode, slot: float, tree: Sequence[Node]) -> str:
    """Return a hypothesis: its newest piece, and its score below."""
    node = spot.node
    is_dropped = node.state == "dropped"
    stroke, width, dash = color("line"), 1.0, ' stroke-dasharray="2 3"' if is_dropped else ""
    if node.is_best or node.is_greedy:
        stroke = color("series-1") if node.is_best else color("series-2")
        width = 2.0
    weight = ' font-weight="bold"' if node.is_best or node.is_greedy else ""
    ink = color("muted" if is_dropped else "ink")
    half = slot / 2 - 4
    end = (
        f'<path d="M{spot.x - half + 3:.1f} {spot.y + _BOX_HEIGHT + 3}h{2 * half - 6:.1f}" '
        f'stroke="{stroke}" stroke-width="2"/>'
        if node.state == "finished"
        else ""
    )
    return (
        f'<g class="cell" data-tip="{escape(_numbers(spot, tree))}">'
        f'<rect x="{spot.x - half:.1f}" y="{spot.y}" width="{2 * half:.1f}" '
        f'height="{_BOX_HEIGHT}" rx="5" fill="{color("panel")}" stroke="{stroke}" '
        f'stroke-width="{width}"{dash}/>{end}'
        f'<text x="{spot.x:.1f}" y="{spot.y + 15}" font-size="12.5" text-anchor="middle"{weight} '
        f'fill="{ink}">{escape(shortened(node.piece, (2 * half - 6) / 12.5))}</text>'
        f'<text x="{spot.x:.1f}" y="{spot.y + 30}" font-size="11" text-anchor="middle" '
        f'fill="{color("muted")}">{_score(node)}</text></g>'
    )


def _score(node: Node) -> str:
    return f"{node.score:.3f}".replace("-", "−") if node.step else "start"


def _numbers(spot: PlacedNode, tree: Sequence[Node]) -> str:
    """Return the numbers of a hypothesis as lines of text."""
    node = spot.node
    paths = [name for name, is_on in (("beam", node.is_best), ("greedy", node.is_greedy)) if is_on]
    lines = [
        one_line(hypothesis_text(tree, spot.index)),
        f"step {node.step}, {node.state}" + (f", path of {' and '.join(paths)}" if paths else ""),
        f"ln P of the token {node.token_log_probability:.6f}",
        f"ln P of the hypothesis {node.log_probability:.6f}",
        f"score {node.score:.6f}",
    ]
    return "\n".join(lines)


def hypothesis_text(tree: Sequence[Node], index: int) -> str:
    """Return the pieces of a hypothesis, with spaces between them."""
    pieces: list[str] = []
    while index >= 0:
        pieces.append(tree[index].piece)
        index = tree[index].parent
    return " ".join(reversed(pieces))


def shortened(text: str, width: float) -> str:
    """Return a text of one line that is at most `width` times the size of its font wide."""
    text = one_line(text)
    if text_width(text) <= width:
        return text
    while text and text_width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def tree_alternative(tree: Sequence[Node], beam_size: int) -> str:
    """Return what the tree shows in words."""
    steps = max(node.step for node in tree)
    best = [node for node in tree if node.is_best and node.step]
    greedy = [node for node in tree if node.is_greedy and node.step]
    parting = next((node.step for node in best if not node.is_greedy), None)
    words = (
        f"Tree of {len(tree) - 1} hypotheses in {steps} steps with a beam of {beam_size}. Path of "
        f"beam search: {' '.join(one_line(node.piece) for node in best)}."
    )
    if parting is None:
        return f"{words} Greedy search takes the same path."
    return (
        f"{words} Greedy search diverges from it at step {parting}; its path in the tree: "
        f"{' '.join(one_line(node.piece) for node in greedy)}."
    )
