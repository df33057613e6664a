"""Searches whose steps are kept: greedy search token by token, and the tree of a beam search."""

# R rows, V vocabulary, C candidates

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batch import pad_source
from tfm_cli.corpus.parallel_text import read_pairs
from tfm_cli.corpus.sources import sample_path
from tfm_cli.decoding.beam import SearchStep, beam_search
from tfm_cli.decoding.greedy import greedy_search
from tfm_cli.decoding.interface import DecodingOptions, Hypothesis, output_limit
from tfm_cli.errors import TfmError
from tfm_cli.model.cache import DecoderState
from tfm_cli.model.transformer import Transformer
from tfm_cli.pictures.explanation import (
    Comparison,
    DecodingStep,
    Node,
    Search,
    SearchResult,
    Tokens,
)
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.translation.torch_engine import target_vocabulary

DEFAULT_BEAM = 4  # beside greedy search, where the model's own beam is 1
_CANDIDATES = 5
_BATCH = 64  # lines of the sample that are searched together
_TRIED = 128  # lines after which a model that translates none of them is given up
_SAMPLE = ("test", "combinations")


@dataclass(slots=True)
class _Watched:
    """A Transformer as a step model of one segment, which notes what it computes.

    Attributes:
        starts: times that the encoder was computed.
        best: the likeliest tokens of each step with their probabilities.
        shapes: shapes of the keys of one layer after each step: of the target and of the source.
    """

    transformer: Transformer
    starts: int = 0
    best: list[tuple[list[int], list[float]]] = field(default_factory=list)
    shapes: list[tuple[torch.Size, torch.Size]] = field(default_factory=list)

    def start(self, source: Tensor, source_keep: Tensor | None) -> DecoderState:
        """Encode the source."""
        self.starts += 1
        return self.transformer.start(source, source_keep)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return the logits (R, V) of the next token."""
        logits = self.transformer.step(tokens, state)  # (R, V)
        probabilities = logits[0].softmax(dim=0)  # (V,)
        best, ids = probabilities.topk(min(_CANDIDATES, len(probabilities)))  # (C,) each
        self.best.append((ids.tolist(), best.tolist()))
        layer = state.layers[0]
        assert layer.key is not None
        self.shapes.append((layer.key.shape[1:], layer.memory_key.shape[1:]))
        return logits


class Searcher:
    """The searches of one model.

    Args:
        transformer: the model, in evaluation mode.
        tokenizers: its tokenizers.
        settings: of the beam search; a beam of 1 is widened to `DEFAULT_BEAM`.
        max_tokens: maximum number of tokens of a translation.
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizers: TokenizerPair,
        settings: SearchConfig,
        *,
        max_tokens: int,
    ) -> None:
        self._transformer = transformer
        self._source, self._target = tokenizers
        self._settings = settings
        self._beam_size = settings.beam_size if settings.beam_size > 1 else DEFAULT_BEAM
        self._max_tokens = max_tokens
        self._vocabulary = target_vocabulary(self._target, torch.device("cpu"))

    def explained(self, sentence: str, ids: Sequence[int], *, example_seconds: float) -> Search:
        """Return the searches of a sentence and, if they agree, an example where they do not.

        Args:
            sentence: the text.
            ids: its tokens without </s>.
            example_seconds: maximum time to find the example; 0 does not look.

        Raises:
            NonFiniteScoresError: the model computes scores that are not finite numbers.
        """
        comparison, watched = self._compared(sentence, ids, "")
        example, note = None, ""
        if comparison.agree and example_seconds > 0:
            example, note = self._example(example_seconds)
        return Search(
            encoder_passes=watched.starts,
            decoder_passes=len(watched.best),
            steps=self._steps(watched, comparison),
            comparison=comparison,
            example=example,
            example_note=note,
        )

    def translation(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the ids of a translation by beam search, without </s>."""
        return self._searched(self._transformer, ids, self._beam_size, None).ids

    def _compared(
        self, sentence: str, ids: Sequence[int], reference: str
    ) -> tuple[Comparison, _Watched]:
        """Return greedy search beside beam search, and the model that greedy search used."""
        watched, steps = _Watched(self._transformer), list[SearchStep]()
        greedy = self._searched(watched, ids, 1, None)
        beam = self._searched(self._transformer, ids, self._beam_size, steps.append)
        found = Comparison(
            source=sentence,
            reference=reference,
            greedy=self._found(greedy),
            beam=self._found(beam),
            beam_size=self._beam_size,
            length_penalty=self._settings.length_penalty,
            tree=search_tree(steps, self._target, greedy.ids),
        )
        return found, watched

    def _searched(
        self,
        model: Transformer | _Watched,
        ids: Sequence[int],
        beam_size: int,
        observer: Callable[[SearchStep], None] | None,
    ) -> Hypothesis:
        """Return the best hypothesis of one segment."""
        source, keep = pad_source([ids], self._source.eos_id)
        ((best, *_),) = beam_search(
            model, source, keep, limits=[self._limit(ids)], vocabulary=self._vocabulary,
            options=self._options(beam_size), observer=observer,
        )  # fmt: skip
        return best

    def _options(self, beam_size: int) -> DecodingOptions:
        settings = dataclasses.replace(self._settings, beam_size=beam_size)
        return DecodingOptions(settings=settings, token_log_probs=True)

    def _limit(self, ids: Sequence[int]) -> int:
        return min(output_limit(len(ids), self._settings.max_length_factor), self._max_tokens)

    def _found(self, hypothesis: Hypothesis) -> SearchResult:
        ids = (*hypothesis.ids, self._target.eos_id)
        (text,) = self._target.decode([hypothesis.ids])
        return SearchResult(
            text=text,
            tokens=Tokens(tuple(self._target.pieces[each] for each in ids), ids),
            token_log_probabilities=hypothesis.token_log_probs,
            log_probability=hypothesis.log_probability,
            score=hypothesis.score,
        )

    def _steps(self, watched: _Watched, comparison: Comparison) -> tuple[DecodingStep, ...]:
        """Return the steps of the greedy search."""
        pieces, layers = self._target.pieces, len(self._transformer.decoder_layers)
        tokens = comparison.greedy.tokens
        read = (pieces[self._target.start_id], *tokens.pieces)
        steps = []
        for step, ((best, probabilities), (kept, memory)) in enumerate(
            zip(watched.best, watched.shapes, strict=True)
        ):
            steps.append(
                DecodingStep(
                    step=step + 1,
                    input=read[step],
                    chosen=tokens.pieces[step],
                    log_probability=comparison.greedy.token_log_probabilities[step],
                    best_pieces=tuple(pieces[each] for each in best),
                    best_probabilities=tuple(probabilities),
                    cache_shape=_three(kept),
                    memory_shape=_three(memory),
                    cache_numbers=2 * layers * kept.numel(),  # keys and values
                    memory_numbers=2 * layers * memory.numel(),
                )
            )
        return tuple(steps)

    # A sentence on which greedy search goes wrong.

    def _example(self, seconds: float) -> tuple[Comparison | None, str]:
        """Return a sentence of the sample on which only beam search is right, and a note."""
        deadline = time.monotonic() + seconds
        try:
            files = [[sample_path(f"{name}.{side}") for name in _SAMPLE] for side in ("en", "fr")]
            pairs = list(read_pairs(*files))
        except TfmError as error:
            return None, f"no example was looked for: {error}"
        encoded = self._source.encode([source for source, _ in pairs])
        order = sorted(range(len(pairs)), key=lambda i: len(encoded[i]))  # short trees first
        right = done = 0
        for start in range(0, len(order), _BATCH):
            if time.monotonic() > deadline or (done >= _TRIED and not right):
                break
            lines = [i for i in order[start : start + _BATCH] if encoded[i]]
            correct, wrong = self._judged(pairs, encoded, lines)
            right, done = right + correct, done + len(lines)
            for line in self._right_by_beam(pairs, encoded, wrong):
                found, _ = self._compared(pairs[line][0], encoded[line], pairs[line][1])
                if not found.agree and found.beam.text == found.reference:
                    where = "the test text and the combinations of the sample corpus"
                    return found, f"the shortest such sentence in {where}"
        place = f"the {done} shortest of the {len(pairs)} test sentences of the sample corpus"
        if not right:
            return None, f"the model translates none of {place} as their reference"
        return None, f"in {place} there is none where greedy search is wrong and beam search right"

    def _judged(
        self,
        pairs: Sequence[tuple[str, str]],
        encoded: Sequence[Sequence[int]],
        lines: Sequence[int],
    ) -> tuple[int, list[int]]:
        """Return how many of some lines greedy search translates rightly, and the other lines."""
        source, keep = pad_source([encoded[i] for i in lines], self._source.eos_id)
        found = greedy_search(
            self._transformer, source, keep, limits=[self._limit(encoded[i]) for i in lines],
            vocabulary=self._vocabulary, stops_loops=True,
        )  # fmt: skip
        texts = self._target.decode([hypothesis.ids for hypothesis in found])
        wrong = [i for i, text in zip(lines, texts, strict=True) if text != pairs[i][1]]
        return len(lines) - len(wrong), wrong

    def _right_by_beam(
        self,
        pairs: Sequence[tuple[str, str]],
        encoded: Sequence[Sequence[int]],
        lines: Sequence[int],
    ) -> list[int]:
        """Return those of some lines that beam search translates as their reference."""
        if not lines:
            return []
        source, keep = pad_source([encoded[i] for i in lines], self._source.eos_id)
        found = beam_search(
            self._transformer, source, keep, limits=[self._limit(encoded[i]) for i in lines],
            vocabulary=self._vocabulary, options=self._options(self._beam_size),
        )  # fmt: skip
        texts = self._target.decode([best.ids for best, *_ in found])
        return [i for i, text in zip(lines, texts, strict=True) if text == pairs[i][1]]


def _three(shape: torch.Size) -> tuple[int, int, int]:
    first, second, third = shape
    return first, second, third


@dataclass(slots=True)
class _Growing:
    """A hypothesis of the tree while it is built; `children` by id, the best first."""

    node: Node
    children: dict[int, int] = field(default_factory=dict)


def search_tree(
    steps: Sequence[SearchStep], tokenizer: Tokenizer, greedy: Sequence[int]
) -> tuple[Node, ...]:
    """Return the hypotheses of a beam search of one segment, parents before children.

    Args:
        steps: of the search, in order.
        tokenizer: of the target.
        greedy: the translation of greedy search without </s>.
    """
    pieces, start = tokenizer.pieces, tokenizer.start_id
    root = Node(
        parent=-1, step=0, piece=pieces[start], id=start, token_log_probability=0.0,
        log_probability=0.0, score=0.0, state="kept", is_best=False, is_greedy=False,
    )  # fmt: skip
    tree = [_Growing(root)]
    beams = {0: 0}  # the node of each beam
    for number, step in enumerate(steps, 1):
        grown: dict[int, int] = {}
        rows = zip(
            step.parents[0].tolist(), step.tokens[0].tolist(), step.token_log_probs[0].tolist(),
            step.log_probs[0].tolist(), step.scores[0].tolist(), step.finished[0].tolist(),
            step.beams[0].tolist(), strict=True,
        )  # fmt: skip
        for parent, token, token_log_prob, log_prob, score, finished, beam in rows:
            if log_prob == float("-inf"):
                continue
            at = beams[parent]
            tree[at].children.setdefault(token, len(tree))
            if beam >= 0:
                grown[beam] = len(tree)
            state = "finished" if finished else "kept" if beam >= 0 else "dropped"
            node = Node(
                parent=at, step=number, piece=pieces[token], id=token,
                token_log_probability=token_log_prob, log_probability=log_prob, score=score,
                state=state, is_best=False, is_greedy=False,
            )  # fmt: skip
            tree.append(_Growing(node))
        beams = grown
    best = _path_to_best(tree)
    followed = _followed(tree, [*greedy, tokenizer.eos_id])
    return tuple(
        dataclasses.replace(each.node, is_best=index in best, is_greedy=index in followed)
        for index, each in enumerate(tree)
    )


def _path_to_best(tree: Sequence[_Growing]) -> set[int]:
    """Return the indices of the nodes from the root to the best finished hypothesis."""
    finished = [i for i, each in enumerate(tree) if each.node.state == "finished"]
    at = max(finished, key=lambda i: tree[i].node.score, default=-1)
    path = set()
    while at >= 0:
        path.add(at)
        at = tree[at].node.parent
    return path


def _followed(tree: Sequence[_Growing], ids: Sequence[int]) -> set[int]:
    """Return the indices of the nodes that spell a sequence, as far as the tree has it."""
    at, path = 0, {0}
    for token in ids:
        if token not in tree[at].children:
            break
        at = tree[at].children[token]
        path.add(at)
    return path
