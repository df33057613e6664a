"""The section `equality`: the device computes what the CPU does."""

# B segments, T target tokens, V vocabulary

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.train_works import Shape
from tests.conftest import TinyCorpus, train_tiny, write_corpus
from tests.gpu.section import Job
from tests.gpu.updates import Batches, largest_difference, losses, training
from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batch import make_batch
from tfm_cli.cuda.static_transformer import StaticTransformer
from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.decoding.static.search import Shape as StepShape
from tfm_cli.device import CPU, resolve_device
from tfm_cli.model.precision import autocast
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.translation.search import SearchEngine, SearchOptions
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.torch_engine import TorchEngine
from tfm_cli.translation.translator import load_models

# fp32, sums in another order, over some ten tokens.
MAX_SCORE_DIFFERENCE = 1e-3
# A product's factors are off by 2 parts in 1000 in bf16; a dozen products follow on each other,
# whose errors are independent. The same bound is in tests/cuda.
MAX_BF16_SHARE = 0.025
# Sums in another order change the last digits, and Adam divides by small gradients.
MAX_LOSS_DIFFERENCE = 1e-3
UPDATES = 20
_BATCH = 64  # segments


def report(job: Job) -> None:
    """Train a small model on the CPU, and compare what it does on both."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder))
        model = Path(folder, "model")
        train_tiny(corpus, model)
        torch.set_num_threads(threads)  # training took one
        for beam_size in (1, 4):
            with job.attempt(what=_search_name(beam_size)):
                compare_translations(job, model, corpus, beam_size)
        with job.attempt(what="logits"):
            compare_logits(job, model, corpus)
    with job.attempt(what="losses of training"):
        compare_losses(job)


def compare_translations(job: Job, model: Path, corpus: TinyCorpus, beam_size: int) -> None:
    """Compare the best hypotheses of the device with those of both engines on the CPU, in fp32."""
    options = SearchOptions(SearchConfig(beam_size=beam_size), scores=True)
    lines = [*corpus.lines("test.en"), *corpus.lines("train.en")]
    on_device = torch.device(job.device)
    # What `load_models` makes for a GPU; in a rehearsal the same on a CPU.
    trained = load_model(model, on_device)
    actual = _searched(_torch_engine(trained, options, on_device, static_steps=True), trained,
                       lines, beam_size)  # fmt: skip
    if job.is_gpu:
        loaded = load_models([model], resolve_device(job.device), "fp32").engine(options)
        assert _ids(_searched(loaded, trained, lines, beam_size)) == _ids(actual)
    on_cpu = load_model(model, torch.device("cpu"))
    engines = {
        "the native engine": load_models([model], CPU, "fp32", sets_threads=False).engine(options),
        "PyTorch": _torch_engine(on_cpu, options, torch.device("cpu"), static_steps=False),
    }
    for name, engine in engines.items():
        expected = _searched(engine, on_cpu, lines, beam_size)
        same = sum(a == b for a, b in zip(_ids(actual), _ids(expected), strict=True))
        difference = largest_difference(
            [each.log_probability for each in actual], [each.log_probability for each in expected]
        )
        job.add(
            what=_search_name(beam_size), compared_with=f"{name} on the CPU",
            equal=f"{same} of {len(lines)} translations, token by token",
            largest_difference=difference, mean_difference=None,
            bound=f"all, and {MAX_SCORE_DIFFERENCE:g} of a log-probability",
            holds=same == len(lines) and difference <= MAX_SCORE_DIFFERENCE,
        )  # fmt: skip


def _search_name(beam_size: int) -> str:
    return f"{'greedy' if beam_size == 1 else f'beam {beam_size}'}, fp32"


def _torch_engine(
    trained: TrainedModel, options: SearchOptions, device: torch.device, *, static_steps: bool
) -> TorchEngine:
    return TorchEngine(
        [trained.transformer], trained.tokenizers, options, device=device,
        static_steps=static_steps,
    )  # fmt: skip


def _searched(
    engine: SearchEngine, trained: TrainedModel, lines: Sequence[str], beam_size: int
) -> list[Hypothesis]:
    """Return the best hypothesis of each line."""
    segments = [
        Segment(line=index, part=0, number=index + 1, ids=ids, seed=0, prefix=[])
        for index, ids in enumerate(trained.tokenizers.source.encode(list(lines)))
    ]
    found: list[Hypothesis] = []
    for start in range(0, len(segments), _BATCH):
        batch = segments[start : start + _BATCH]
        found += [hypotheses[0] for hypotheses in engine.search(batch, beam_size)]
    return found


def _ids(hypotheses: Sequence[Hypothesis]) -> list[list[int]]:
    return [list(hypothesis.ids) for hypothesis in hypotheses]


@torch.inference_mode()
def compare_logits(job: Job, model: Path, corpus: TinyCorpus) -> None:
    """Compare logits in bf16 on the device, of training's way and of the decoder's, with fp32's."""
    trained = load_model(model, torch.device("cpu"))
    source_ids, target_ids = (
        tokenizer.encode(corpus.lines(f"valid.{language}"))
        for tokenizer, language in (
            (trained.tokenizers.source, "en"), (trained.tokenizers.target, "de"),
        )
    )  # fmt: skip
    target = trained.tokenizers.target
    batch = make_batch(source_ids, target_ids, start_id=target.start_id, eos_id=target.eos_id)
    expected = trained.transformer(batch.source, batch.source_keep, batch.target_in)  # (B, T, V)
    device = torch.device(job.device)
    on_device = copy.deepcopy(trained.transformer).to(device)
    moved = batch.to(device)
    with autocast(device, torch.bfloat16):
        by_autocast = on_device(moved.source, moved.source_keep, moved.target_in)
    fixed = StaticTransformer(on_device, torch.bfloat16)
    segments, capacity = batch.target_in.shape
    state = fixed.state(StepShape(segments, 1, moved.source.shape[1], capacity))
    fixed.encode(moved.source, moved.source_keep, state)
    ancestors = torch.full((segments, 1, capacity), -1, device=device)
    steps = []
    for step in range(capacity):
        ancestors[:, :, step] = 0
        position = torch.tensor([step], device=device)
        steps.append(fixed.step(moved.target_in[:, step], position, ancestors, state).clone())
    real = batch.target_positions  # padding does not count
    for name, logits in (
        ("logits, bf16, as in training", by_autocast),
        ("logits, bf16, as in decoding", torch.stack(steps, dim=1)),
    ):
        _add_logits(job, name, logits.float().cpu().flatten(0, 1)[real],
                    expected.flatten(0, 1)[real])  # fmt: skip


def _add_logits(job: Job, name: str, actual: Tensor, expected: Tensor) -> None:
    difference = (actual - expected).abs()
    share = float((actual - expected).norm() / expected.norm())
    job.add(
        what=name, compared_with="fp32 on the CPU",
        equal=f"norm of the difference: {100 * share:.2f} % of that of the logits",
        largest_difference=float(difference.max()), mean_difference=float(difference.mean()),
        bound=f"{100 * MAX_BF16_SHARE:g} % of the norm", holds=share <= MAX_BF16_SHARE,
    )  # fmt: skip


def compare_losses(job: Job) -> None:
    """Compare the losses of updates in fp32, without dropout, of the device and the CPU."""
    shape = Shape(256, 3, 4, 1024, 8000, updates=UPDATES)
    max_tokens = 1024
    if job.is_tiny:
        shape, max_tokens = Shape(32, 1, 2, 64, 500, updates=UPDATES), 256
    batches = Batches.draw(
        pairs=2000, vocab_size=shape.vocab_size, max_tokens=max_tokens, number=UPDATES
    )
    found = []
    # In a rehearsal other micro-batches, whose gradients are added up in another order.
    for device, micro_batch in (("cpu", max_tokens), (job.device, 2 * max_tokens // 3)):
        with training(
            shape, batches, device=device, precision="fp32", micro_batch=micro_batch
        ) as side:
            found.append(losses(side, UPDATES))
    expected, actual = found
    differences = [abs(a - b) for a, b in zip(actual, expected, strict=True)]
    job.add(
        what=f"losses of {UPDATES} updates, fp32", compared_with="fp32 on the CPU",
        equal=f"{expected[0]:.4f} → {expected[-1]:.4f} on the CPU, {actual[-1]:.4f} at last",
        largest_difference=max(differences),
        mean_difference=sum(differences) / len(differences),
        bound=f"{MAX_LOSS_DIFFERENCE:g} each", holds=max(differences) <= MAX_LOSS_DIFFERENCE,
    )  # fmt: skip
