"""What the processes of a run agree on before it begins: settings, tokenizers, text, its place."""

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
from tfm_cli.config.settings import SECTIONS, RunConfig, settings_before
from tfm_cli.config.validation import shown
from tfm_cli.errors import ConfigError, DivergedError
from tfm_cli.parallel import Parallel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.training.batches import Planner
from tfm_cli.training.data import Corpora
from tfm_cli.training.optimizer import MovingAverage
from tfm_cli.training.parallel_model import ParallelModel
from tfm_cli.training.state import TrainState

logger = logging.getLogger(__name__)


# Each machine may have its own of these; of `data`, all that tells only where the text is.
_OF_THE_MACHINE = ("training.device", "training.cpu_threads")


def check_ranks_agree(facts: Mapping[str, str], parallel: Parallel) -> None:
    """Raise a ConfigError, on all processes, if one has other facts than rank 0; names all of them.

    Args:
        facts: values by what messages call them.
        parallel: the processes.
    """
    tables = [
        json.loads(each) for each in parallel.all_gather_bytes(json.dumps(dict(facts)).encode())
    ]
    lines = [
        f"rank {rank}: {name} is {table.get(name)}, on rank 0 {wanted}"
        for rank, table in enumerate(tables)
        for name, wanted in tables[0].items()
        if table.get(name) != wanted
    ]
    if lines:
        raise ConfigError(
            "\n  ".join(["the processes do not agree on what to do", *lines]),
            hint="give all of them the same settings and the same text",
        )


def with_settings_of_rank_0(config: RunConfig, parallel: Parallel) -> RunConfig:
    """Return the settings with those that rank 0 keeps from the run that it resumes.

    A run keeps the defaults with which it began. Only rank 0 is sure to have its directory; the
    other processes, which may be on other machines, have the defaults of today.
    """
    names = settings_before()
    own = {
        section: {name: getattr(getattr(config, section), name) for name in table}
        for section, table in names.items()
    }
    kept = json.loads(parallel.broadcast_bytes(json.dumps(own).encode()))
    defaults = RunConfig()
    changed = {}
    for section, table in own.items():
        default = getattr(defaults, section)
        new = {n: kept[section][n] for n, value in table.items() if value == getattr(default, n)}
        changed[section] = dataclasses.replace(getattr(config, section), **new)
    return dataclasses.replace(config, **changed)


def setting_facts(config: RunConfig) -> dict[str, str]:
    """All settings by their names, but those that each machine may have its own of."""
    facts = {}
    for section in SECTIONS:
        table = getattr(config, section)
        for field in dataclasses.fields(table):
            name = f"{section}.{field.name}"
            is_place = section == "data" and field.metadata["may_change"]
            if not is_place and name not in _OF_THE_MACHINE:
                facts[name] = shown(getattr(table, field.name))
    return facts


def code_versions(parallel: Parallel) -> dict[str, str]:
    """What is computed by: of which versions, and of which text, our own code is."""
    if parallel.world == 1:
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
    settled: TokenizerPair | None,
    parallel: Parallel,
) -> Corpora:
    """The texts of a run, with the tokenizers of rank 0 on all processes.

    Rank 0 comes first and learns the tokenizers, then the first process of each other machine. The
    rest find prepared what these have left on the disk.

    Args:
        load: gives the texts, by tokenizers that are settled or by its own.
        settled: tokenizers that rank 0 has already.
        parallel: the processes.

    Raises:
        ConfigError: a process has other text than rank 0.
    """
    corpora = load(settled) if parallel.is_main else None
    message = parallel.broadcast_bytes(b"" if corpora is None else _packed(corpora.tokenizers))
    tokenizers = corpora.tokenizers if corpora is not None else _unpacked(message)
    if corpora is None and parallel.local_rank == 0:
        corpora = load(tokenizers)
    parallel.all_max([0])  # the others wait until all of these are here
    if corpora is None:
        corpora = load(tokenizers)
    check_ranks_agree({name: sha256[:12] for name, sha256 in corpora.sha256().items()}, parallel)
    return corpora


def _packed(tokenizers: TokenizerPair) -> bytes:
    files = {name: base64.b64encode(data).decode() for name, data in tokenizers.files().items()}
    return json.dumps(files).encode()


def _unpacked(message: bytes) -> TokenizerPair:
    files = {name: base64.b64decode(data) for name, data in json.loads(message).items()}
    return TokenizerPair.from_files(files, origin="rank 0")


def with_smallest_micro_batch(planner: Planner, parallel: Parallel) -> Planner:
    """The planner with micro-batches that fit all devices; their numbers are those of all."""
    (least,) = parallel.all_max([-planner.micro_batch])
    return dataclasses.replace(planner, micro_batch=-least)


def broadcast_state(state: TrainState, parallel: Parallel) -> TrainState:
    """Where the run stands, as rank 0 knows it."""
    return TrainState.from_json(
        json.loads(parallel.broadcast_bytes(json.dumps(state.to_json()).encode()))
    )


def log_batches_per_update(state: TrainState, update_freq: int, world: int) -> None:
    """Log how many batches an update has, if it had others before."""
    before, now = state.batches_per_update, update_freq * world
    if before in (0, now):
        return
    plural = "es" if world > 1 else ""
    keep = f"`--update-freq {before // world}` would keep that"
    if before % world:
        keep = "no `--update-freq` would keep that"
    logger.info(
        "an update has %d batch%s now (`--update-freq %d`, %d process%s) and had %d before; %s",
        now, "es" if now > 1 else "", update_freq, world, plural, before, keep,
    )  # fmt: skip


# Whether all processes have the same weights, as they must when each of them has all.

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The sum over the bits of each tensor, read as whole numbers; any single bit changes it."""
    sums = [
        tensor.detach().contiguous().view(_SAME_SIZE[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in tensors.values()
    ]
    found = torch.stack(sums).tolist() if sums else []  # a GPU is waited for once
    return dict(zip(tensors, found, strict=True))


def check_weights_agree(
    update: int,
    parallel_model: ParallelModel,
    average: MovingAverage,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raise a DivergedError if a process has other weights, averages or moments than rank 0.

    Equal gradients make equal weights, so memory or code is at fault. What was computed on since
    is worth nothing, and must be neither judged nor saved. All processes raise it.
    """
    parallel = parallel_model.parallel
    if parallel.world == 1 or parallel_model.is_sharded:  # each shard there is only once
        return
    tensors = {name: weight.detach() for name, weight in parallel_model.model.named_parameters()}
    tensors |= {f"{name} (average)": weight for name, weight in average.weights.items()}
    for name, weight in parallel_model.model.named_parameters():
        for key, moment in optimizer.state.get(weight, {}).items():
            tensors[f"{name} ({key})"] = moment
    mine = json.dumps(checksums(tensors)).encode()
    tables = [json.loads(each) for each in parallel.all_gather_bytes(mine)]
    lines = []
    for rank, table in enumerate(tables):
        others = [name for name, value in tables[0].items() if table.get(name) != value]
        if others:
            more = f" and {len(others) - 1} more" if others[1:] else ""
            lines.append(f"rank {rank} of {parallel.world}: `{others[0]}`{more}")
    if lines:
        raise DivergedError(
            "\n  ".join([f"update {update}: there are other weights than on rank 0", *lines]),
            hint="start the same again, and have the memory of that machine tested",
        )
