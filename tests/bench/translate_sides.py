"""One side of a work, in a process of its own, which translates whenever it is asked to.

The first line on standard input is a job in JSON: which `side`, the `directory` it loads, how it
searches and in which arrangement, the `lines`, and when its process was started. Every further
line asks for one more round; `outputs` in it asks for what was found as well. Each is answered by a
line.
"""

import dataclasses
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from tests.bench.translate_table import Measured
from tfm_cli.errors import ResourceError

WARM_UP = 8  # sentences
CHECKED = 64  # sentences whose hypotheses are compared where all translations have one length
_MOST_PIECES = 256  # of a translation that may end by itself

Pieces = list[str]


class RefusedError(Exception):
    """A side cannot do the work, or is not installed."""


class Side(Protocol):
    """Something that translates."""

    precision: str

    def translate(self, lines: Sequence[str]) -> list[Pieces]:
        """Return the pieces of the best translation of each line, without </s>."""

    def beams(self, lines: Sequence[str]) -> list[list[Pieces]]:
        """Return all hypotheses of each line."""

    def text(self, pieces: Pieces) -> str:
        """Return the text of a translation."""


class Tfm:
    """The native engine of `tfm_cli`; its workers are threads that share the weights."""

    def __init__(self, job: dict[str, Any]) -> None:
        from tfm_cli.config.settings import SearchConfig
        from tfm_cli.native.model import NativeModel
        from tfm_cli.native.search import NativeSearch

        self.precision = job["precision"]
        # What CTranslate2 always does: it stops at the count, and never knows of banned pieces.
        search = SearchConfig(
            beam_size=job["beam_size"], early_stopping=True, renormalize=job["renormalize"]
        )
        try:
            model = NativeModel.load(Path(job["directory"]), precision=self.precision)
        except (ResourceError, KeyError) as error:
            raise RefusedError(f"the engine has no {self.precision}: {error}") from error
        self._search = NativeSearch([model], search, scores=False)
        self._tokenizers = model.tokenizers
        self._limit, self._batch, self._workers = job["limit"], job["batch"], job["workers"]

    def translate(self, lines: Sequence[str]) -> list[Pieces]:
        return [hypotheses[0] for hypotheses in self.beams(lines)]

    def beams(self, lines: Sequence[str]) -> list[list[Pieces]]:
        from tfm_cli.native.search import Segments

        sources = self._tokenizers.source.encode(list(lines), threads=1)
        order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
        starts = range(0, len(order), self._batch)
        batches = [order[start : start + self._batch] for start in starts]

        def search(chosen: list[int]) -> list[list[Pieces]]:
            limits = [self._limit or _MOST_PIECES] * len(chosen)
            segments = Segments(sources=[sources[index] for index in chosen], limits=limits)
            pieces = self._tokenizers.target.pieces
            return [
                [[pieces[i] for i in hypothesis.ids] for hypothesis in found]
                for found in self._search(segments)
            ]

        if self._workers == 1:
            results = [search(chosen) for chosen in batches]
        else:
            with ThreadPoolExecutor(self._workers) as pool:
                results = list(pool.map(search, batches))
        found: list[list[Pieces]] = [[] for _ in lines]
        for chosen, translations in zip(batches, results, strict=True):
            for index, translation in zip(chosen, translations, strict=True):
                found[index] = translation
        return found

    def text(self, pieces: Pieces) -> str:
        return self._tokenizers.target.decode_pieces([pieces])[0]


class CTranslate2:
    """`ctranslate2.Translator`, with SentencePiece before and after it."""

    def __init__(self, job: dict[str, Any]) -> None:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # it would be imported
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

    def translate(self, lines: Sequence[str]) -> list[Pieces]:
        return [hypotheses[0] for hypotheses in self._hypotheses(lines, 1)]

    def beams(self, lines: Sequence[str]) -> list[list[Pieces]]:
        return self._hypotheses(lines, self._beam_size)

    def _hypotheses(self, lines: Sequence[str], count: int) -> list[list[Pieces]]:
        found = self._translator.translate_batch(
            self._source.encode(list(lines), out_type=str, num_threads=1),
            max_batch_size=self._batch,
            beam_size=self._beam_size,
            num_hypotheses=count,
            length_penalty=1,
            # Which may be </s>, where translations end.
            max_decoding_length=self._limit or _MOST_PIECES + 1,
            max_input_length=0,
        )
        return [result.hypotheses for result in found]

    def text(self, pieces: Pieces) -> str:
        text: str = self._target.decode([pieces])[0]
        return text


class HuggingFace:
    """`MarianMTModel.generate`, with SentencePiece before and after it.

    A job may also have a `device` and a `dtype`, of PyTorch's names.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        try:
            import transformers
        except ImportError as error:
            raise RefusedError("transformers is not installed") from error
        import torch

        from tfm_cli.tokenizer.tokenizer import Tokenizer

        if not job["limit"]:
            raise RefusedError("`generate` is measured at one length only")
        torch.set_num_threads(job["threads"])
        self.precision = job.get("dtype", "float32")
        self._device = torch.device(job.get("device", "cpu"))
        theirs: Any = transformers
        theirs.utils.logging.set_verbosity_error()
        theirs.utils.logging.disable_progress_bar()
        self._transformers = theirs
        self._model: Any = theirs.MarianMTModel.from_pretrained(
            job["directory"], local_files_only=True, dtype=getattr(torch, self.precision)
        ).to(self._device).eval()  # fmt: skip
        # A joint tokenizer with SentencePiece's own ids.
        self._tokenizer = Tokenizer.load(Path(job["directory"], "source.spm"))
        self._beam_size, self._limit, self._batch = job["beam_size"], job["limit"], job["batch"]

    def translate(self, lines: Sequence[str]) -> list[Pieces]:
        return [hypotheses[0] for hypotheses in self._hypotheses(lines, 1)]

    def beams(self, lines: Sequence[str]) -> list[list[Pieces]]:
        return self._hypotheses(lines, self._beam_size)

    def _hypotheses(self, lines: Sequence[str], count: int) -> list[list[Pieces]]:
        import torch

        from tfm_cli.corpus.batch import pad_source

        tokenizer = self._tokenizer
        options: dict[str, Any] = {
            "max_length": self._limit + 1,  # the start
            "do_sample": False,
            "num_beams": self._beam_size,
            "num_return_sequences": count,
            "decoder_start_token_id": tokenizer.start_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.eos_id,
            "bad_words_ids": [[banned] for banned in tokenizer.banned_ids],
        }
        if self._beam_size > 1:
            options |= {"length_penalty": 1.0, "early_stopping": True}
        config = self._transformers.GenerationConfig(**options)
        self._model.generation_config = config  # what is not said here would be taken from it
        found: list[Pieces] = []
        with torch.inference_mode():
            for start in range(0, len(lines), self._batch):
                segments = tokenizer.encode(lines[start : start + self._batch])
                source, keep = pad_source(segments, tokenizer.eos_id)
                mask = torch.ones_like(source) if keep is None else keep[:, 0, 0].long()
                rows = self._model.generate(
                    input_ids=source.to(self._device),
                    attention_mask=mask.to(self._device),
                    generation_config=config,
                ).tolist()
                found += [[tokenizer.pieces[i] for i in row[1 : self._limit + 1]] for row in rows]
        return [found[start : start + count] for start in range(0, len(found), count)]

    def text(self, pieces: Pieces) -> str:
        return self._tokenizer.decode_pieces([pieces])[0]


SIDES: dict[str, Callable[[dict[str, Any]], Side]] = {
    "tfm": Tfm, "ctranslate2": CTranslate2, "hf": HuggingFace,
}  # fmt: skip


def measure(side: Side, job: dict[str, Any], *, outputs: bool) -> Measured:
    """Translate the lines of a job once."""
    lines = job["lines"]
    began, cpu_began = time.perf_counter(), time.process_time()
    if job["one_by_one"]:
        found = [side.translate([line])[0] for line in lines]
    else:
        found = side.translate(lines)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS

    if job["limit"] and (lengths := {len(pieces) for pieces in found}) != {job["limit"]}:
        raise RuntimeError(f"translations of {sorted(lengths)} tokens, wanted {job['limit']}")
    return Measured(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        sentences=len(lines),
        pieces=sum(map(len, found)) + (0 if job["limit"] else len(found)),
        load_seconds=job["load_seconds"],
        peak_mib=peak / (1 << 20 if sys.platform == "darwin" else 1 << 10),
        outputs=_outputs(side, job, found) if outputs else (),
        texts=tuple(map(side.text, found)) if outputs and not job["limit"] else (),
        precision=side.precision,
    )


def _outputs(side: Side, job: dict[str, Any], found: list[Pieces]) -> tuple[str, ...]:
    """Return the translation of each line, or all hypotheses where none can end by itself.

    The log-probability of </s>, which only one of the sides counts, decides on their order there.
    """
    if not job["limit"] or job["beam_size"] == 1:
        return tuple(map(" ".join, found))
    beams = side.beams(job["lines"][:CHECKED])
    return tuple("\n".join(sorted(map(" ".join, hypotheses))) for hypotheses in beams)


def loaded(job: dict[str, Any]) -> Side:
    """Return the side of a job, which has translated a few lines.

    Raises:
        RefusedError: it cannot do the work.
    """
    side = SIDES[job["side"]](job)
    # This clock is the machine's, not the process'.
    job["load_seconds"] = time.monotonic() - job["began"]
    side.translate(job["lines"][: 1 if job["one_by_one"] else WARM_UP])
    return side


def main() -> None:
    """Load, then do a round for each line that comes."""
    job = json.loads(sys.stdin.readline())
    try:
        side = loaded(job)
    except RefusedError as refusal:
        print(json.dumps({"refused": str(refusal)}), flush=True)
        return
    print("{}", flush=True)
    for line in sys.stdin:
        found = measure(side, job, outputs=json.loads(line)["outputs"])
        print(json.dumps(dataclasses.asdict(found)), flush=True)


if __name__ == "__main__":
    main()
