"""A small training run, and the results in which two equal runs must agree."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.conftest import TINY_SHAPE, TinyCorpus

# Everything that makes an exact resumption difficult: dropout, gradient accumulation, an average.
SMALL_RUN = [
    *TINY_SHAPE, "--max-tokens", "64", "--update-freq", "2", "--dropout", "0.2", "--lr", "5e-3",
    "--attention-dropout", "0.1", "--activation-dropout", "0.1", "--word-dropout", "0.1",
    "--lr-warmup", "10", "--set", "training.ema_decay=0.8", "--device", "cpu",
    "--precision", "fp32", "--cpu-threads", "1",
]  # fmt: skip


def write_part(corpus: TinyCorpus, directory: Path, *, pairs: int, valid: int = 8) -> list[str]:
    """Write the first lines of the corpus to files, and return the flags that name them."""
    flags = []
    for flag, name, count in (
        ("-s", "train.en", pairs),
        ("-t", "train.de", pairs),
        ("-vs", "valid.en", valid),
        ("-vt", "valid.de", valid),
    ):
        if count:
            text = "".join(f"{line}\n" for line in corpus.lines(name)[:count])
            (directory / name).write_text(text, encoding="utf-8", newline="\n")
            flags += [flag, str(directory / name)]
    return flags


def checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted((output / "checkpoints").glob("update-*"))


def metrics(output: Path, *, marks: bool = False) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`, which must be strict JSON, without NaN or infinity.

    Args:
        output: the run.
        marks: with the lines about stops and resumes, which an uninterrupted run lacks.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    return [line for line in parsed if marks or line["event"] not in ("stopped", "resumed")]


def left_behind(output: Path) -> dict[str, Any]:
    """Return the results of a run except for times: hashes of tensors, counters, metrics."""
    newest = checkpoints(output)[-1]
    counters = json.loads((newest / "state.json").read_bytes())
    files = [*newest.glob("*.safetensors"), *output.glob("*.safetensors"), *output.glob("*.model")]
    return {
        "hashes": {
            f"{file.parent.name}/{file.name}".removeprefix(f"{output.name}/"): _sha256(file)
            for file in sorted(files)
        },
        "state": _timeless(counters["state"]),
        "text": counters["text_sha256"],
        "metrics": [_timeless(line) for line in metrics(output)],
    }


def _timeless(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if "second" not in name}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
