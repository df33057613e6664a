"""Greedy translation without scores: the same texts, found with less work."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TinyCorpus
from tfm_cli.config import SearchConfig
from tfm_cli.decoding.greedy import greedy_search
from tfm_cli.translation import searching as module
from tfm_cli.translation.translator import Translator


@pytest.fixture
def num_greedy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments each greedy search had."""
    sizes: list[int] = []

    def counting(model: Any, source: torch.Tensor, *others: Any, **options: Any) -> Any:
        sizes.append(len(source))
        return greedy_search(model, source, *others, **options)

    monkeypatch.setattr(module, "greedy_search", counting)
    return sizes


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("max_tokens", [60, 4096])
def test_texts_are_the_same_without_scores(
    tiny_model: Path, tiny_corpus: TinyCorpus, num_greedy: list[int], precision: str,
    max_tokens: int,
) -> None:  # fmt: skip
    search = SearchConfig(beam_size=1, max_tokens=max_tokens, buffer_size=20)
    lines = [*tiny_corpus.lines("test.en"), "", "one " * 40, "one"]

    def translated(*, scores: bool) -> list[str]:
        translator = Translator.load(
            tiny_model, search=search, device="cpu", precision=precision, scores=scores
        )
        translations = list(translator.translate(lines))
        told = [translation.candidates[0].score for translation in translations]
        unknown = [bool(line) and not scores for line in lines]
        assert [math.isnan(score) for score in told] == unknown
        return [translation.text for translation in translations]

    scored = translated(scores=True)
    assert num_greedy == []
    plain = translated(scores=False)

    assert plain == scored
    assert sum(num_greedy) == len(lines) - 1


@pytest.mark.parametrize(
    "search",
    [
        SearchConfig(beam_size=2),
        SearchConfig(beam_size=1, no_repeat_ngram_size=2),
        SearchConfig(beam_size=1, repetition_penalty=1.2),
    ],
    ids=["beam", "n-grams", "penalty"],
)
def test_what_greedy_search_cannot_do_is_left_to_others(
    tiny_model: Path, num_greedy: list[int], search: SearchConfig
) -> None:
    translator = Translator.load(tiny_model, search=search, device="cpu", scores=False)

    (translation,) = translator.translate(["one two"])

    assert translation.text == "eins zwei"
    assert num_greedy == []


def test_prefixes_are_left_to_others(tiny_model: Path, num_greedy: list[int]) -> None:
    search = SearchConfig(beam_size=1)
    translator = Translator.load(tiny_model, search=search, device="cpu", scores=False)

    (forced,) = translator.translate_window(["one two"], ["neun"])
    assert num_greedy == []
    (free,) = translator.translate_window(["one two"])

    assert forced.text.startswith("neun")
    assert free.text == "eins zwei"
    assert num_greedy == [1]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_compiler_is_not_imported(tiny_model: Path, precision: str) -> None:
    """It would make the start two seconds longer."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tfm_cli.translation.translator import Translator\n"
        "translator = Translator.load(\n"
        "    Path(sys.argv[1]), device='cpu', precision=sys.argv[2], scores=False\n"
        ")\n"
        "print([t.text for t in translator.translate(['one two'])])\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", script, str(tiny_model), precision]

    found = subprocess.run(command, capture_output=True, text=True, check=True)

    assert found.stdout == "['eins zwei']\n[]\n"
