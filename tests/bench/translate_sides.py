"""One side of one work, in a process of its own: a job in JSON in, what was measured out.

A job says which `side`, the `directory` it loads, how it searches and in which arrangement, the
`lines`, and when its process was started.
"""

import dataclasses
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.bench.translate_table import Measured
from tfm_cli.errors import ConfigError

WARM_UP = 8  # sentences
CHECKED = 16  # sentences whose hypotheses are compared where all translations have one length
_MOST_PIECES = 256  # of a translation that may end by itself


class RefusedError(Exception):
    """A side cannot do the work, or is not installed."""


class Side(Protocol):
    """What translates lines."""

    precision: str

    def translate(self, lines: Sequence[str]) -> list[tuple[str, int]]:
        """The translation of each line and its number of pieces, </s> included."""

    def hypotheses(self, lines: Sequence[str]) -> list[list[str]]:
        """All hypotheses of each line, where none can end before `limit` pieces."""


class Tfm:
    """`tfm_cli`'s own Translator, as `tfm translate` uses it."""

    def __init__(self, job: dict[str, Any]) -> None:
        from tfm_cli.config import SearchConfig
        from tfm_cli.weights_file import hash_ahead

        hash_ahead(Path(job["directory"], "model.safetensors"))
        from tfm_cli.translation.translator import Translator

        self.precision = job["precision"]
        beam_size, limit = job["beam_size"], job["limit"]
        # What CTranslate2 always does: it stops at the count, and never knows of banned pieces.
        search = SearchConfig(
            beam_size=beam_size,
            early_stopping=True,
            renormalize=job["renormalize"],
            max_length_factor=job["length_factor"],
            max_tokens=max(1, round(job["batch"] * job["source_length"] * beam_size)),
        )
        options: dict[str, Any] = {
            "device": "cpu", "precision": self.precision,
            "workers": job["workers"], "scores": False,
        }  # fmt: skip

        def load(n_best: int) -> Translator:
            chosen = dataclasses.replace(search, n_best=n_best)
            return Translator.load(Path(job["directory"]), search=chosen, **options)

        self._load = load
        self._beam_size, self._limit = beam_size, limit
        try:
            self._translator = load(1)
        except ConfigError as error:
            raise RefusedError(str(error)) from error

    def translate(self, lines: Sequence[str]) -> list[tuple[str, int]]:
        found = list(self._translator.translate(lines))
        return [(translation.text, translation.num_pieces) for translation in found]

    def hypotheses(self, lines: Sequence[str]) -> list[list[str]]:
        found = self._load(self._beam_size).translate(lines)
        return [[candidate.text for candidate in translation.candidates] for translation in found]


class CTranslate2:
    """`ctranslate2.Translator`, with SentencePiece before and after it."""

    def __init__(self, job: dict[str, Any]) -> None:
        try:
            import ctranslate2
        except ImportError as error:
            raise RefusedError("ctranslate2 is not installed") from error
        import sentencepiece

        ctranslate2.set_log_level(logging.ERROR)
        supported = ctranslate2.get_supported_compute_types("cpu")
        self.precision = next((kind for kind in job["compute_types"] if kind in supported), "")
        if not self.precision:
            raise RefusedError(f"this processor has no {' or '.join(job['compute_types'])}")
        self._translator: Any = ctranslate2.Translator(
            job["directory"],
            device="cpu",
            compute_type=self.precision,
            inter_threads=job["workers"],
            intra_threads=job["threads"],
        )
        self._source, self._target = (
            sentencepiece.SentencePieceProcessor(model_file=f"{job['directory']}/{side}.spm")
            for side in ("source", "target")
        )
        self._beam_size, self._limit, self._batch = job["beam_size"], job["limit"], job["batch"]

    def _search(self, lines: Sequence[str], longest: int, num_hypotheses: int) -> list[Any]:
        found: list[Any] = self._translator.translate_batch(
            self._source.encode(list(lines), out_type=str),
            max_batch_size=self._batch,
            beam_size=self._beam_size,
            num_hypotheses=num_hypotheses,
            length_penalty=1,
            max_decoding_length=longest,
            max_input_length=0,
        )
        return found

    def translate(self, lines: Sequence[str]) -> list[tuple[str, int]]:
        # The limit leaves room for </s>: as many steps as with tfm.
        found = self._search(lines, (self._limit or _MOST_PIECES) + 1, 1)
        pieces = [result.hypotheses[0] for result in found]
        ends = 0 if self._limit else 1
        texts = self._target.decode(pieces)
        return [(text, len(one) + ends) for text, one in zip(texts, pieces, strict=True)]

    def hypotheses(self, lines: Sequence[str]) -> list[list[str]]:
        found = self._search(lines, self._limit, self._beam_size)
        return [self._target.decode(result.hypotheses) for result in found]


class HuggingFace:
    """`MarianMTModel.generate`, with SentencePiece before and after it."""

    precision = "float32"

    def __init__(self, job: dict[str, Any]) -> None:
        try:
            import transformers
        except ImportError as error:
            raise RefusedError("transformers is not installed") from error
        import torch

        from tfm_cli.tokenizer import Tokenizer

        if not job["limit"]:
            raise RefusedError("`generate` is measured at one length only")
        torch.set_num_threads(job["threads"])
        theirs: Any = transformers
        theirs.utils.logging.set_verbosity_error()
        theirs.utils.logging.disable_progress_bar()
        self._transformers = theirs
        self._model: Any = theirs.MarianMTModel.from_pretrained(
            job["directory"], local_files_only=True, dtype=torch.float32
        ).eval()
        # A joint tokenizer with SentencePiece's own ids.
        self._tokenizer = Tokenizer.load(Path(job["directory"], "source.spm"))
        self._beam_size, self._limit, self._batch = job["beam_size"], job["limit"], job["batch"]

    def _search(self, lines: Sequence[str], longest: int, num_hypotheses: int) -> list[list[int]]:
        import torch

        from tfm_cli.corpus.batch import pad_source

        tokenizer = self._tokenizer
        options: dict[str, Any] = {
            "max_length": longest + 1,  # the start
            "do_sample": False,
            "num_beams": self._beam_size,
            "num_return_sequences": num_hypotheses,
            "decoder_start_token_id": tokenizer.start_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.eos_id,
            "bad_words_ids": [[banned] for banned in tokenizer.banned_ids],
        }
        if self._beam_size > 1:
            options |= {"length_penalty": 1.0, "early_stopping": True}
        config = self._transformers.GenerationConfig(**options)
        self._model.generation_config = config  # what is not said here would be taken from it
        rows: list[list[int]] = []
        with torch.inference_mode():
            for start in range(0, len(lines), self._batch):
                segments = tokenizer.encode(lines[start : start + self._batch])
                source, keep = pad_source(segments, tokenizer.eos_id)
                mask = torch.ones_like(source) if keep is None else keep[:, 0, 0].long()
                found = self._model.generate(
                    input_ids=source, attention_mask=mask, generation_config=config
                )
                rows += [row[1:] for row in found.tolist()]
        return rows

    def translate(self, lines: Sequence[str]) -> list[tuple[str, int]]:
        rows = self._search(lines, self._limit + 1, 1)
        texts = self._tokenizer.decode(rows)
        return [(text, len(row)) for text, row in zip(texts, rows, strict=True)]

    def hypotheses(self, lines: Sequence[str]) -> list[list[str]]:
        texts = self._tokenizer.decode(self._search(lines, self._limit, self._beam_size))
        return [
            texts[start : start + self._beam_size]
            for start in range(0, len(texts), self._beam_size)
        ]


SIDES: dict[str, Callable[[dict[str, Any]], Side]] = {
    "tfm": Tfm, "ctranslate2": CTranslate2, "hf": HuggingFace,
}  # fmt: skip


def measure(job: dict[str, Any]) -> Measured:
    """Load, warm up, translate; then, if asked for, find what is compared."""
    side = SIDES[job["side"]](job)
    # This clock is the machine's, not the process'.
    load_seconds = time.monotonic() - job["began"]
    lines = job["lines"]

    def translate(some: Sequence[str]) -> list[tuple[str, int]]:
        if not job["one_by_one"]:
            return side.translate(some)
        return [side.translate([line])[0] for line in some]

    translate(lines[:WARM_UP] if not job["one_by_one"] else lines[:2])
    began = time.perf_counter()
    found = translate(lines)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS

    outputs: tuple[tuple[str, ...], ...] = tuple((text,) for text, _ in found)
    if job["limit"]:
        lengths = {pieces for _, pieces in found}
        if lengths != {job["limit"] + 1}:
            wanted = f"wanted {job['limit']} and </s>"
            raise RuntimeError(f"translations of {sorted(lengths)} pieces, {wanted}")
        checked = side.hypotheses(lines[:CHECKED]) if job["check"] else []
        outputs = tuple(tuple(texts) for texts in checked)
    return Measured(
        seconds=seconds,
        sentences=len(lines),
        pieces=sum(pieces for _, pieces in found),
        load_seconds=load_seconds,
        peak_mib=peak / (1 << 20 if sys.platform == "darwin" else 1 << 10),
        outputs=outputs,
        precision=side.precision,
    )


def main() -> None:
    """Do the job."""
    job = json.load(sys.stdin)
    try:
        result = dataclasses.asdict(measure(job))
    except RefusedError as refusal:
        result = {"refused": str(refusal)}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
