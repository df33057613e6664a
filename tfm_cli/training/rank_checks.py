"""Checks that all ranks have the same settings, code and text, and later the same weights."""

import base64
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

import tfm_cli
from tfm_cli.config.settings import SECTIONS, RunConfig, legacy_defaults
from tfm_cli.config.validation import quoted
from tfm_cli.errors import ConfigError, DivergedError
from tfm_cli.parallel import Parallel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.training.batches import BatchSampler
from tfm_cli.training.data import Corpora
from tfm_cli.training.optimizer import MovingAverage
from tfm_cli.training.parallel_model import ParallelModel
from tfm_cli.training.state import TrainState

logger = logging.getLogger(__name__)

# Machines may differ in these settings, and in those of `data` that are paths of the text.
_MACHINE_SETTINGS = ("training.device", "training.cpu_threads")
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


def check_ranks_agree(facts: Mapping[str, str], parallel: Parallel) -> None:
    """Raise a ConfigError, on all ranks, that names every fact in which a rank differs from rank 0.

    Args:
        facts: values by their names in error messages.
        parallel: the processes.
    """
    messages = parallel.all_gather_bytes(json.dumps(dict(facts)).encode())
    tables = [json.loads(message) for message in messages]
    lines = [
        f"rank {rank}: {name} is {table.get(name)}, on rank 0 {expected}"
        for rank, table in enumerate(tables)
        for name, expected in tables[0].items()
        if table.get(name) != expected
    ]
    if lines:
        raise ConfigError(
            "\n  ".join(["the processes differ in settings, code or text", *lines]),
            hint="give all of them the same settings and the same text",
        )


def with_settings_of_rank_0(config: RunConfig, parallel: Parallel) -> RunConfig:
    """Return the settings with the defaults of rank 0, which are those of the run it resumes.

    A run keeps the defaults that it began with. Ranks on other machines may be unable to read its
    directory, and start from the current defaults.
    """
    own = {
        section: {name: getattr(getattr(config, section), name) for name in table}
        for section, table in legacy_defaults().items()
    }
    of_rank_0 = json.loads(parallel.broadcast_bytes(json.dumps(own).encode()))
    defaults = RunConfig()
    changed = {}
    for section, table in own.items():
        default = getattr(defaults, section)
        unset = [name for name, value in table.items() if value == getattr(default, name)]
        values = {name: of_rank_0[section][name] for name in unset}
        changed[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **changed)


def setting_facts(config: RunConfig) -> dict[str, str]:
    """Return all settings by name, except those in which machines may differ."""
    facts = {}
    for section in SECTIONS:
        table = getattr(config, section)
        for field in dataclasses.fields(table):
            name = f"{section}.{field.name}"
            is_path = section == "data" and field.metadata["may_change"]
            if not is_path and name not in _MACHINE_SETTINGS:
                facts[name] = quoted(getattr(table, field.name))
    return facts


def code_versions(parallel: Parallel) -> dict[str, str]:
    """Return the versions of tfm and PyTorch, and a hash of tfm's code; empty for one process."""
    if parallel.world_size == 1:
        return {}
    digest = hashlib.sha256()
    package = Path(tfm_cli.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {
        "tfm": tfm_cli.__version__,
        "tfm's code": digest.hexdigest()[:12],
        "PyTorch": torch.__version__,
    }


def load_corpora_on_all_ranks(
    load: Callable[[TokenizerPair | None], Corpora],
    tokenizers: TokenizerPair | None,
    parallel: Parallel,
) -> Corpora:
    """Return the texts of a run, with the tokenizers of rank 0 on all ranks.

    Rank 0 loads first and trains the tokenizers, then the first rank of each other machine. The
    other ranks use the text that these have prepared on the disk.

    Args:
        load: returns the texts for existing tokenizers, or for those that it trains.
        tokenizers: those that exist already on rank 0.
        parallel: the processes.

    Raises:
        ConfigError: a rank has other text than rank 0.
    """
    corpora = load(tokenizers) if parallel.is_main else None
    message = parallel.broadcast_bytes(b"" if corpora is None else _encode(corpora.tokenizers))
    tokenizers = corpora.tokenizers if corpora is not None else _decode(message)
    if corpora is None and parallel.local_rank == 0:
        corpora = load(tokenizers)
    parallel.all_max([0])  # a barrier
    if corpora is None:
        corpora = load(tokenizers)
    hashes = {name: sha256[:12] for name, sha256 in corpora.sha256().items()}
    check_ranks_agree(hashes, parallel)
    return corpora


def _encode(tokenizers: TokenizerPair) -> bytes:
    files = {name: base64.b64encode(data).decode() for name, data in tokenizers.files().items()}
    return json.dumps(files).encode()


def _decode(message: bytes) -> TokenizerPair:
    files = {name: base64.b64decode(data) for name, data in json.loads(message).items()}
    return TokenizerPair.from_files(files, origin="rank 0")


def with_smallest_micro_batch(sampler: BatchSampler, parallel: Parallel) -> BatchSampler:
    """Return the sampler with the smallest micro-batch of all ranks."""
    (smallest,) = parallel.all_max([-sampler.micro_batch])
    return dataclasses.replace(sampler, micro_batch=-smallest)


def broadcast_state(state: TrainState, parallel: Parallel) -> TrainState:
    """Return the state of rank 0, on all ranks."""
    message = parallel.broadcast_bytes(json.dumps(state.to_json()).encode())
    return TrainState.from_json(json.loads(message))


def log_batches_per_update(state: TrainState, update_freq: int, world_size: int) -> None:
    """Log the number of batches per update if it differs from that before the resume."""
    before, now = state.batches_per_update, update_freq * world_size
    if before in (0, now):
        return
    plural = "es" if world_size > 1 else ""
    advice = f"`--update-freq {before // world_size}` would keep that"
    if before % world_size:
        advice = "no `--update-freq` would keep that"
    logger.info(
        "an update has %d batch%s now (`--update-freq %d`, %d process%s) and had %d before; %s",
        now, "es" if now > 1 else "", update_freq, world_size, plural, before, advice,
    )  # fmt: skip


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sum of each tensor, read as integers; any flipped bit changes it."""
    sums = [
        tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in tensors.values()
    ]
    values = torch.stack(sums).tolist() if sums else []  # waits for a GPU only once
    return dict(zip(tensors, values, strict=True))


def check_weights_agree(
    update: int,
    parallel_model: ParallelModel,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raise a DivergedError, on all ranks, if weights, averages or moments differ from rank 0.

    All ranks apply the same gradients, so a difference means faulty memory or code. Such weights
    must be neither validated nor saved.
    """
    parallel = parallel_model.parallel
    if parallel.world_size == 1 or parallel_model.is_sharded:  # each shard exists only once
        return
    tensors = {name: weight.detach() for name, weight in parallel_model.model.named_parameters()}
    tensors |= {f"{name} (average)": weight for name, weight in average.weights.items()}
    for name, weight in parallel_model.model.named_parameters():
        for key, moment in optimizer.state.get(weight, {}).items():
            tensors[f"{name} ({key})"] = moment
    messages = parallel.all_gather_bytes(json.dumps(checksums(tensors)).encode())
    tables = [json.loads(message) for message in messages]
    lines = []
    for rank, table in enumerate(tables):
        different = [name for name, value in tables[0].items() if table.get(name) != value]
        if different:
            more = f" and {len(different) - 1} more" if different[1:] else ""
            lines.append(f"rank {rank} of {parallel.world_size}: `{different[0]}`{more}")
    if lines:
        raise DivergedError(
            "\n  ".join([f"update {update}: there are other weights than on rank 0", *lines]),
            hint="repeat the command, and test the memory of that machine",
        )
