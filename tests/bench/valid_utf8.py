"""What it costs that byte pieces spell UTF-8, and that n-best lists hold different texts.

    python -m tests.bench.valid_utf8 MODEL TEXT

Searches with and without each of them take turns in one process of one thread.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.translation import search as searching
from tfm_cli.translation.torch_engine import TorchEngine
from tfm_cli.translation.translator import Translator

LINES = 100
TURNS = 31


def translator_of(
    model: TrainedModel, *, is_free: bool, sampling: bool = False, **search: Any
) -> Translator:
    """Return a translator; a free one has no constraint on byte pieces."""
    translator = torch_translator(
        model.transformer, model.tokenizers, search=SearchConfig(**search), sampling=sampling,
        device=torch.device("cpu"), scores=search["beam_size"] > 1,
    )  # fmt: skip
    if is_free:
        engine = translator._engine
        assert isinstance(engine, TorchEngine)
        engine._vocabulary = dataclasses.replace(engine._vocabulary, utf8=None)
    return translator


def by_turns(
    first: Translator, second: Translator, windows: Sequence[Sequence[str]]
) -> list[tuple[float, float]]:
    """Return the processor seconds of both for the windows, turn by turn."""
    times = []
    for turn in range(TURNS + 1):
        taken = {}
        for translator in (first, second) if turn % 2 else (second, first):
            began = time.process_time()
            for lines in windows:
                translator.translate_window(lines)
            taken[translator] = time.process_time() - began
        times.append((taken[first], taken[second]))
    return times[1:]  # the first turn warms up


def told(name: str, times: Sequence[tuple[float, float]]) -> None:
    """Print the ratio of the first to the second."""
    low, middle, high = statistics.quantiles([one / other for one, other in times], n=4)
    print(f"{name}: {middle:.3f} times the processor time (quartiles {low:.3f}, {high:.3f})")


def main() -> None:
    """Measure the model and the text that were named."""
    torch.set_num_threads(1)
    model = load_model(Path(sys.argv[1]), torch.device("cpu"))
    lines = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()[:LINES]
    for beam_size in (1, 4):
        bound, free = (
            translator_of(model, is_free=is_free, beam_size=beam_size) for is_free in (False, True)
        )
        told(f"beam {beam_size}, {len(lines)} lines together", by_turns(bound, free, [lines]))
        one_by_one = [[line] for line in lines[:10]]
        told(f"beam {beam_size}, 10 lines one by one", by_turns(bound, free, one_by_one))
    for name, is_free in (("with", False), ("without", True)):
        samples = translator_of(model, is_free=is_free, sampling=True, beam_size=1, n_best=5)
        found = [each.text for t in samples.translate_window(lines) for each in t.candidates]
        bad = sum("\ufffd" in text for text in found)
        print(f"{name} the constraint {bad} of {len(found)} samples have U+FFFD")
    lists = translator_of(model, is_free=False, beam_size=10, n_best=10)
    ten_best(lists, lines, "10-best lists of different texts")
    with patch.object(searching, "different_texts", first_search):
        ten_best(lists, lines, "10-best lists of whatever the beam finds")


def first_search(search: Any, *_: object, segments: int, beam_size: int, **__: object) -> Any:
    """Stand for `different_texts`."""
    return search(range(segments), beam_size)


def ten_best(translator: Translator, lines: Sequence[str], name: str) -> None:
    """Print the time that lists take, and how many have a text twice."""
    began = time.process_time()
    found = translator.translate_window(lines)
    seconds = time.process_time() - began
    twice = sum(len({each.text for each in t.candidates}) < len(t.candidates) for t in found)
    print(f"{name}: {seconds:.1f} s, {twice} have a text twice")


if __name__ == "__main__":
    main()
