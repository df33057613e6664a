"""The options of a search, and the tokens of a vocabulary that it treats specially."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfm_cli.decoding.utf8 import Utf8


@dataclass(frozen=True, slots=True)
class TargetVocabulary:
    """The tokens of the target vocabulary that search treats specially.

    Attributes:
        start_id: the decoder's first input.
        eos_id: ends a translation; must not be banned.
        banned_ids: never written.
        utf8: restricts byte tokens to valid UTF-8. A hypothesis neither ends nor continues with
            another token inside a character, and begins no character that the limit would cut
            off. Scores remain those of the model. None for no such constraint.
    """

    start_id: int
    eos_id: int
    banned_ids: Sequence[int] = ()
    utf8: Utf8 | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError if the end of a translation is banned."""
        if self.eos_id in self.banned_ids:
            raise ValueError(f"</s>, id {self.eos_id}, is banned, so no translation could end")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingOptions:
    """The options of a search, the same for all segments of a batch.

    Attributes:
        beam_size: number of hypotheses that are kept at each step.
        length_penalty: exponent of the length normalization of scores.
        norm_kind: the kind of length normalization, see `length_norm`.
        early_stopping: finish a segment once it has `beam_size` finished hypotheses, as fairseq
            and CTranslate2 do. Without it, search continues until no growing hypothesis scores
            above the worst finished one, as in `generate` of Hugging Face, so that a few poor
            short hypotheses cannot exclude a good one that ends later. Measured with a beam of 4
            on Multi30k: 0.14 BLEU more in the same time.
        renormalize: normalize probabilities over the permitted tokens; otherwise over all tokens,
            including banned ones and those that `no_repeat_ngram_size` forbids.
        no_repeat_ngram_size: write no n-gram of this size twice; 0 for no constraint. The UTF-8
            constraint overrides it where a character could not be ended otherwise.
        repetition_penalty: divides the positive logits of tokens already written and multiplies
            the negative ones (Keskar et al. 2019, arXiv:1909.05858).
        stops_loops: end a hypothesis that repeats the same few tokens, as if at its limit.
        token_log_probs: store the log-probability of each token of a hypothesis.
        temperature: divides the logits in sampling; below 1, likely tokens become likelier.
        top_k: sample among this many likeliest tokens; 0 for all.
        top_p: sample, after `top_k`, among the fewest likeliest tokens with this share of the mass
            (Holtzman et al. 2020, arXiv:1904.09751).
    """

    beam_size: int = 4
    length_penalty: float = 1.0
    norm_kind: str = "power"
    early_stopping: bool = False
    renormalize: bool = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    stops_loops: bool = False
    token_log_probs: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


DEFAULT_OPTIONS = DecodingOptions()
