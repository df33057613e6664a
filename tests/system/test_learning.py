"""A small model must learn what a Transformer can learn: to copy, to turn round and to sort."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunTfm
from tests.tiers import representative

Line = list[str]

RECIPE = [
    "--device", "cpu", "--cpu-threads", "1", "-q",
    "--set", "tokenizer.model_type=word", "--set", "tokenizer.byte_fallback=false",
    "--set", "model.width=64", "--set", "model.heads=4", "--set", "model.feed_forward_width=128",
    "--set", "model.encoder_layers=2", "--set", "model.decoder_layers=2",
    "--set", "model.norm=pre", "--set", "training.ema_decay=0.98", "--dropout", "0",
    "--label-smoothing", "0", "--max-tokens", "512", "--lr", "4e-3", "--lr-warmup", "100",
    "--valid-freq", "200",
]  # fmt: skip


@pytest.mark.slow
@representative(
    ("task", "max_updates"),
    [(list, 300), (lambda words: words[::-1], 800), (lambda words: sorted(words, key=int), 500)],
    ids=["copy", "reverse", "sort"],
)
def test_r18_task_is_learned_on_sequences_that_were_never_seen(
    task: Callable[[Line], Line], max_updates: int, run_tfm: RunTfm, tmp_path: Path
) -> None:
    chance, seen = random.Random(11), set()
    for name, count in (("test", 200), ("valid", 100), ("train", 8000)):
        lines: list[Line] = []
        while len(lines) < count:
            line = [str(chance.randint(0, 19)) for _ in range(chance.randint(2, 7))]
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
        ["translate", "--model", files["-o"], "--device", "cpu", "--precision", "fp32"],
        (tmp_path / "test.source").read_text(encoding="utf-8"),
    )

    assert trained.code == 0, trained.err
    expected = (tmp_path / "test.target").read_text(encoding="utf-8").split("\n")[:-1]
    right = sum(a == b for a, b in zip(result.out.split("\n"), expected, strict=False))
    assert right >= 0.99 * len(expected), f"{right} of {len(expected)}"
