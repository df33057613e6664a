"""A small model must learn what a Transformer can learn: to copy and to turn round."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunTfm

Line = list[str]

RECIPE = [
    "--device", "cpu", "--cpu-threads", "1", "--precision", "fp32", "-q",
    "--set", "tokenizer.model_type=word", "--set", "tokenizer.byte_fallback=false",
    "--set", "model.width=64", "--set", "model.heads=4", "--set", "model.feed_forward_width=128",
    "--set", "model.encoder_layers=2", "--set", "model.decoder_layers=2",
    "--set", "model.norm=pre", "--set", "training.ema_decay=0.98", "--dropout", "0",
    "--label-smoothing", "0", "--max-tokens", "512", "--lr", "4e-3", "--lr-warmup", "100",
    "--valid-freq", "200",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "max_updates"),
    [(lambda words: words, 400), (lambda words: words[::-1], 600)],
    ids=["copy", "reverse"],
)
def test_task_is_learned_on_sequences_that_were_never_seen(
    task: Callable[[Line], Line], max_updates: int, run_tfm: RunTfm, tmp_path: Path
) -> None:
    chance, seen = random.Random(11), set()
    for name, count in (("test", 200), ("valid", 100), ("train", 4000)):
        lines: list[Line] = []
        while len(lines) < count:
            line = [str(chance.randint(0, 29)) for _ in range(chance.randint(2, 8))]
            if tuple(line) not in seen:
                seen.add(tuple(line))
                lines.append(line)
        for side, rows in (("source", lines), ("target", map(task, lines))):
            text = "".join(" ".join(row) + "\n" for row in rows)
            (tmp_path / f"{name}.{side}").write_text(text, encoding="utf-8", newline="\n")
    files = {
        flag: str(tmp_path / name)
        for flag, name in (
            ("-s", "train.source"), ("-t", "train.target"), ("-vs", "valid.source"),
            ("-vt", "valid.target"), ("-o", "model"),
        )
    }  # fmt: skip
    named = [word for pair in files.items() for word in pair]

    trained = run_tfm(["train", *named, *RECIPE, "--max-updates", str(max_updates)])
    result = run_tfm(
        ["evaluate", str(tmp_path / "test.target"), "--model", files["-o"], "-b", "-w", "2",
         "--source", str(tmp_path / "test.source"), "--device", "cpu", "-q"]
    )  # fmt: skip

    assert trained.code == 0, trained.err
    assert float(result.out) > 95
