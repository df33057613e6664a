"""The section `decoding`: sentences and tokens per second, beside Hugging Face's `generate`."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.bench.machine import package_version
from tests.bench.train_sides import DTYPES
from tests.bench.translate_models import VOCAB_SIZES, make, word_lines
from tests.bench.translate_sides import HuggingFace
from tests.bench.translate_works import LIMIT
from tests.gpu.section import Job
from tests.gpu.throughput import now
from tests.gpu.updates import free_memory
from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batch import pad_source
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.translation.torch_engine import static_search, target_vocabulary

BATCHES = (1, 16, 64, 256, 1024)
WITHOUT_GRAPHS = 64  # the batch that is also decoded without graphs
ROUND_SECONDS = 1.5
ROW_SECONDS = 6.0  # that a row needs

Translate = Callable[[Sequence[str]], int]  # lines → number of generated tokens


class Decoder:
    """The search for GPUs, as `tfm translate` uses it."""

    def __init__(
        self, trained: TrainedModel, device: torch.device, dtype: torch.dtype, beam_size: int
    ) -> None:
        self._tokenizers = trained.tokenizers
        self._device = device
        search = static_search(
            trained.transformer,
            target_vocabulary(trained.tokenizers.target, device),
            SearchConfig(beam_size=beam_size, early_stopping=True),
            scores=False,
            device=device,
            dtype=dtype,
        )
        assert search is not None
        self._search = search

    def disable_graphs(self) -> None:
        """Launch each operator of a step by itself."""
        self._search._recorder.can_record = False

    @property
    def has_graphs(self) -> bool:
        """Return True if steps are replayed as CUDA graphs."""
        recorder = self._search._recorder
        return recorder.device.type == "cuda" and recorder.can_record

    @torch.inference_mode()
    def translate(self, lines: Sequence[str]) -> int:
        """Return the number of generated tokens."""
        ids = self._tokenizers.source.encode(list(lines))
        source, keep = pad_source(ids, self._tokenizers.source.eos_id)
        keep = None if keep is None else keep.to(self._device)
        found = self._search(source.to(self._device), keep, limits=[LIMIT] * len(lines))
        return _checked([len(hypotheses[0].ids) for hypotheses in found])


def _checked(lengths: list[int]) -> int:
    if set(lengths) != {LIMIT}:
        raise RuntimeError(f"translations of {sorted(set(lengths))} tokens, wanted {LIMIT}")
    return sum(lengths)


def report(job: Job) -> None:
    """Measure tfm with each search and batch size, then without graphs, then Hugging Face."""
    shape = "tiny" if job.is_tiny else "base"
    batches = (1, 8) if job.is_tiny else BATCHES
    precision = "bf16" if job.is_gpu else "fp32"
    has_peer = package_version("transformers") != "not installed"
    lines = word_lines(max(batches), VOCAB_SIZES[shape])
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "tfm")
        make(shape, Path(folder), model, exports=["hf"] if has_peer else [], updates=0)
        ours = _measure_ours(job, model, lines, batches, precision)
        free_memory(job.device)
        if not has_peer:
            job.add(side="Hugging Face", error="transformers is not installed")
            return
        _measure_theirs(job, Path(folder, "hf"), lines, batches, precision, ours)


def _measure_ours(
    job: Job, model: Path, lines: Sequence[str], batches: Sequence[int], precision: str
) -> dict[tuple[int, int], float]:
    """Write the rows of tfm, and return tokens per second by beam and batch size."""
    device = torch.device(job.device)
    trained = load_model(model, device)
    rates = {}
    for beam_size in (1, 4):
        decoder = Decoder(trained, device, DTYPES[precision], beam_size)
        for batch in batches:
            facts = _facts("tfm", beam_size, batch, precision)
            if job.has_time(ROW_SECONDS, **facts):
                with job.attempt(**facts):
                    found = _measured(job, decoder.translate, lines[:batch])
                    rates[beam_size, batch] = found["tokens_per_second"]
                    job.add(**facts, CUDA_graphs=decoder.has_graphs, **found)
    batch = min(WITHOUT_GRAPHS, max(batches))
    for beam_size in (1, 4):
        facts = _facts("tfm", beam_size, batch, precision)
        if job.has_time(ROW_SECONDS, **facts):
            with job.attempt(**facts):
                decoder = Decoder(trained, device, DTYPES[precision], beam_size)
                decoder.disable_graphs()
                found = _measured(job, decoder.translate, lines[:batch])
                job.add(**facts, CUDA_graphs=decoder.has_graphs, **found)
    return rates


def _measure_theirs(
    job: Job, model: Path, lines: Sequence[str], batches: Sequence[int], precision: str,
    ours: dict[tuple[int, int], float],
) -> None:  # fmt: skip
    """Write the rows of Hugging Face, with the ratio of tfm's speed to it."""
    for beam_size in (1, 4):
        for batch in batches:
            facts = _facts("Hugging Face", beam_size, batch, precision)
            if not job.has_time(ROW_SECONDS, **facts):
                continue
            with job.attempt(**facts):
                peer = HuggingFace(
                    {
                        "directory": str(model), "threads": torch.get_num_threads(),
                        "beam_size": beam_size, "limit": LIMIT, "batch": batch,
                        "device": job.device, "dtype": str(DTYPES[precision]).split(".")[1],
                    }
                )  # fmt: skip

                def translate(some: Sequence[str], peer: HuggingFace = peer) -> int:
                    return _checked([len(pieces) for pieces in peer.translate(some)])

                found = _measured(job, translate, lines[:batch])
                ratio = ours.get((beam_size, batch), 0.0) / found["tokens_per_second"]
                job.add(**facts, **found, speed_of_tfm=f"{ratio:.2f} times" if ratio else None)


def _facts(side: str, beam_size: int, batch: int, precision: str) -> dict[str, Any]:
    search = "greedy" if beam_size == 1 else f"beam {beam_size}"
    return {"side": side, "search": search, "batch": batch, "precision": precision}


def _measured(job: Job, translate: Translate, lines: Sequence[str]) -> dict[str, float]:
    """Return the speed of translating the same batch again and again; twice to warm up."""
    for _ in range(2):
        translate(lines)
    began, rounds, tokens = now(job.device), 0, 0
    while rounds == 0 or now(job.device) - began < (0.2 if job.is_tiny else ROUND_SECONDS):
        tokens += translate(lines)
        rounds += 1
    seconds = now(job.device) - began
    return {
        "sentences_per_second": rounds * len(lines) / seconds,
        "tokens_per_second": tokens / seconds,
    }
