"""The settings of decoding, a section of `config.py`."""

from dataclasses import dataclass

from tfm_cli.setting import MOST, opt


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How translations are looked for."""

    beam_size: int = opt(4, "Hypotheses kept for each segment; 1 is greedy.", ge=1, le=256)
    length_penalty: float = opt(
        1.0, "Exponent of the length normalisation; 0 turns it off.", ge=0, le=10
    )
    length_norm: str = opt(
        "power",
        "What is raised to it: the number n of pieces, or (5 + n) / 6 (Wu et al. 2016).",
        choices=("power", "wu"),
    )
    early_stopping: bool = opt(
        False,
        "Stop when as many translations as the beam is wide have ended; else go on while one that "
        "still grows might score above the worst of them.",
    )
    renormalize: bool = opt(
        False,
        "Share the probability of pieces that are never written among the others.",
    )
    n_best: int = opt(
        1,
        "Different translations printed for each line, at most the beam size; with sampling, "
        "samples.",
        ge=1,
        le=256,
    )
    no_repeat_ngram_size: int = opt(
        0, "No run of this many pieces is written twice in a translation; 0 for any.", ge=0, le=256
    )
    repetition_penalty: float = opt(
        1.0,
        "Divides the positive logits of pieces already written, multiplies the negative ones; 1 "
        "leaves them as they are (Keskar et al. 2019).",
        ge=0.01,
        le=1000,
    )
    max_length: int = opt(
        256, "Longest segment in source pieces that is translated in one go.", ge=2, le=1_000_000
    )
    max_length_factor: float = opt(
        3.0,
        "A translation has at most this many pieces for each source piece, plus 10.",
        ge=0.001,
        le=1000,
    )
    max_tokens: int = opt(4096, "Source pieces in a batch, times the beam.", ge=1, le=MOST)
    buffer_size: int = opt(
        4096, "Most lines read ahead, sorted and translated together.", ge=1, le=MOST
    )
    top_k: int = opt(0, "Sample among this many likeliest pieces; 0 for all.", ge=0, le=MOST)
    top_p: float = opt(1.0, "Sample among the likeliest pieces of this total mass.", ge=1e-6, le=1)
    temperature: float = opt(1.0, "Divides the logits before sampling.", ge=1e-6, le=1000)
    seed: int = opt(1, "Seed of the sampling.", ge=0, lt=2**31)
