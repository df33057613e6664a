"""Which words of a line its translation came from, by the model's own attention."""

# B pairs, S source pieces, T target pieces, I words of the line, J words of its translation

import dataclasses
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tfm_cli.arithmetic import ran_out_of_memory
from tfm_cli.corpus.batch import make_batch
from tfm_cli.corpus.token_batches import token_batches
from tfm_cli.decoding.hypothesis import Hypothesis, refuse_non_finite
from tfm_cli.model.transformer import Transformer
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.seams import separators
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.text_lines import text_lines
from tfm_cli.translation.translation import Translation

Ids = Sequence[int] | np.ndarray  # of the pieces of a segment, without </s>


def alignment_layer(decoder_layers: int) -> int:
    """Which decoder layer's attention says where a piece came from: the last but one, from 0.

    Garg et al. 2019 (arXiv:1909.02074) found it the best. So it is here: of the links that IBM
    model 1 finds in both directions on Multi30k, a model of four layers had 28, 65, 78 and 72 %, by
    layer, at the step that writes the piece. The first layer knows too little of what is to be
    written, so it is chosen only where there is no other.
    """
    return max(decoder_layers - 2, min(decoder_layers - 1, 1))


@torch.inference_mode()
def piece_weights(
    models: Sequence[Transformer],
    tokenizers: TokenizerPair,
    sources: Sequence[Ids],
    targets: Sequence[Ids],
    *,
    device: torch.device,
) -> Tensor:
    """How much each target piece came from each source piece, (B, T, S), on the CPU.

    The attention of the step that writes the piece, mean over heads and models, in single
    precision. A row sums to less than 1: what went to </s> of the source is left out. Places of
    padding are 0.

    Args:
        models: which have read the whole pair (teacher forcing).
        tokenizers: of the models.
        sources: ids of each source, without </s>.
        targets: ids of its translation, without </s>.
        device: where the models are.

    Raises:
        NonFiniteScoresError: the attention is not made of finite numbers.
    """
    batch = make_batch(
        [np.asarray(ids, dtype=np.int64) for ids in sources],
        [np.asarray(ids, dtype=np.int64) for ids in targets],
        start_id=tokenizers.target.start_id,
        eos_id=tokenizers.target.eos_id,
        source_eos_id=tokenizers.source.eos_id,
    ).to(device)
    found = [
        model.cross_attention_weights(
            batch.source, batch.source_keep, batch.target_in,
            layer=alignment_layer(len(model.decoder_layers)),
        )
        for model in models
    ]  # fmt: skip
    weights = torch.stack(found).mean(dim=0).float().cpu()[:, :-1, :-1]  # (B, T, S)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        weights[row, len(target) :] = 0
        weights[row, :, len(source) :] = 0
    refuse_non_finite(weights)
    return weights


@dataclass(frozen=True, slots=True)
class Aligner:
    """Says of finished translations which words of the line their words came from.

    Args:
        models: that translate together.
        tokenizers: of the models.
        device: where the models are.
        max_tokens: pieces in a batch.
    """

    models: Sequence[Transformer]
    tokenizers: TokenizerPair
    device: torch.device
    max_tokens: int

    def aligned(
        self,
        translations: Sequence[Translation],
        segments: Sequence[Sequence[Segment]],
        hypotheses: Sequence[Sequence[Sequence[Hypothesis]]],
    ) -> list[Translation]:
        """The translations with the alignments of all their candidates.

        Args:
            translations: of a window.
            segments: by line and part, what was translated.
            hypotheses: by line, candidate and part, what they became.
        """
        pairs = [
            (segment.ids, hypothesis.ids)
            for parts, candidates in zip(segments, hypotheses, strict=True)
            for chosen in candidates
            for segment, hypothesis in zip(parts, chosen, strict=True)
        ]
        weights = iter(self._weights(pairs))
        source = self.tokenizers.source
        lines_of = [list(text_lines(translation.source, source)) for translation in translations]
        spans = iter(source.encode_spans([each.text for lines in lines_of for each in lines]))
        done = []
        for translation, lines, parts, candidates in zip(
            translations, lines_of, segments, hypotheses, strict=True
        ):
            columns = []  # (S, I) each
            of_line: dict[int, list[int]] = {}  # the parts of each line of the text
            for place, segment in enumerate(parts):
                of_line.setdefault(segment.text_line, []).append(place)
            for line in lines:
                places = [line.span_in_text(*span) for span in next(spans)]
                words = _membership(translation.source, places)  # (pieces of the line, I)
                own = [parts[place].ids for place in of_line.get(line.number, [])]
                tag = source.tag_length(line.text)
                columns += [words[places] for places in _places(own, tag)]
            first_parts = [places[0] for places in of_line.values()]
            alignments = []
            for chosen in candidates:
                ids = [hypothesis.ids for hypothesis in chosen]
                texts = self.tokenizers.target.decode(ids)
                shares = [
                    self._target_words(*each) for each in zip(ids, texts, strict=True)
                ]  # (J, T) each
                rows = [
                    _mean(share) @ next(weights) @ part  # (J, I)
                    for share, part in zip(shares, columns, strict=True)
                ]
                joined = [
                    _joined_rows(
                        texts[begin:end],
                        [segment.goes_on for segment in parts[begin:end]],
                        shares[begin:end],
                        rows[begin:end],
                    )
                    for begin, end in pairwise([*first_parts, len(parts)])
                ]
                alignments.append(tuple(row for line_rows in joined for row in line_rows))
            aligned = tuple(
                dataclasses.replace(candidate, alignment=alignment)
                for candidate, alignment in zip(translation.candidates, alignments, strict=True)
            )
            done.append(dataclasses.replace(translation, candidates=aligned))
        return done

    def _weights(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Tensor]:
        """The weights (T, S) of each pair, which are batched by length."""
        order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), len(pairs[i][1])))
        source_lengths, target_lengths = (
            [len(pairs[i][side]) + 1 for i in order] for side in (0, 1)
        )
        found: list[Tensor] = [torch.empty(0)] * len(pairs)
        for batch in token_batches(source_lengths, target_lengths, max_tokens=self.max_tokens):
            some = order[batch]
            for i, weights in zip(some, self._of_batch([pairs[i] for i in some]), strict=True):
                found[i] = weights
        return found

    def _of_batch(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Tensor]:
        """The weights (T, S) of each pair; a batch that memory cannot hold is halved."""
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
        try:
            weights = piece_weights(
                self.models, self.tokenizers, sources, targets, device=self.device
            )
            return [
                weights[row, : len(target), : len(source)]
                for row, (source, target) in enumerate(pairs)
            ]
        except (RuntimeError, MemoryError) as error:
            if len(pairs) == 1 or not ran_out_of_memory(error):
                raise
        half = len(pairs) // 2
        return self._of_batch(pairs[:half]) + self._of_batch(pairs[half:])

    def _target_words(self, ids: Sequence[int], text: str) -> Tensor:
        """Return how much of each piece each word of the translation has, (J, T)."""
        return _membership(text, self.tokenizers.target.decode_spans(ids)).T


def _mean(share: Tensor) -> Tensor:
    """Return the share that each piece has in each word, (J, T), from that of words in pieces."""
    return share / share.sum(dim=1, keepdim=True).clamp(min=1e-9)


def _joined_rows(
    texts: Sequence[str],
    goes_on: Sequence[bool],
    shares: Sequence[Tensor],
    rows: Sequence[Tensor],
) -> tuple[tuple[float, ...], ...]:
    """Return the rows (I,) of the words of all parts together.

    A word that goes on in the next part, as where no blank stands between them, has the mean of
    its pieces.

    Args:
        texts: of each part.
        goes_on: whether each part of the line begins in the middle of a word.
        shares: of words in pieces, (J, T) for each part.
        rows: of the words of each part, (J, I).
    """
    found: list[Tensor] = []
    num_pieces, before = 0.0, " "  # of the last word; what ends in it
    for text, separator, share, part in zip(
        texts, separators(texts, goes_on), shares, rows, strict=True
    ):
        counts = share.sum(dim=1).tolist()
        is_same_word = not (separator or before.isspace() or text[:1].isspace())
        for index, (count, row) in enumerate(zip(counts, part, strict=True)):
            if is_same_word and index == 0 and found:
                total = max(num_pieces + count, 1e-9)
                found[-1] = (found[-1] * num_pieces + row * count) / total
                num_pieces += count
            else:
                found.append(row)
                num_pieces = count
        before = text[-1:] or before
    return tuple(tuple(row.tolist()) for row in found)


def _places(parts: Sequence[Sequence[int]], tag: int) -> list[list[int]]:
    """Which pieces of the line each part has; those that say the language are in every part."""
    places, start = [], tag
    for part in parts:
        end = start + len(part) - tag
        places.append([*range(tag), *range(start, end)])
        start = end
    return places


def _membership(text: str, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The share of each piece that each word of a text has, (pieces, words).

    Words stand between blanks, as in `str.split`. A piece that has nothing of a word, such as a
    blank by itself, belongs to the word behind it.

    Args:
        text: the pieces together.
        spans: where each piece stands in it, begin and end.
    """
    words = [match.span() for match in re.finditer(r"\S+", text)]
    begins, ends = [begin for begin, _ in words], [end for _, end in words]
    share = torch.zeros(len(spans), len(words))
    for piece, (begin, end) in enumerate(spans):
        first = bisect_right(ends, begin)  # the first word that ends behind the piece's begin
        last = max(first + 1, bisect_left(begins, end))
        share[piece, first:last] = 1
    return share / share.sum(dim=1, keepdim=True).clamp(min=1)
