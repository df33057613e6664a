"""Alignments of trained models, and their output formats."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import RunTfm, TinyCorpus
from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.config.settings import SearchConfig
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.weights import TrainedModel, load_model
from tfm_cli.translation.search import SearchOptions
from tfm_cli.translation.torch_engine import TorchEngine
from tfm_cli.translation.translator import Translator, TranslatorOptions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


def test_weights_of_a_batch_are_those_of_its_pairs_and_the_mean_of_the_models(
    trained: TrainedModel,
) -> None:
    sources, targets = [[5, 6, 7], [8], [9, 5]], [[5, 6], [7, 8, 9, 5], []]
    torch.manual_seed(1)
    width = trained.tokenizers.target.vocab_size
    other = transformer_of(width, encoder_layers=1, decoder_layers=3, width=8, heads=2).eval()

    def weights(models: list[Transformer], rows: slice) -> list[Tensor]:
        options = SearchOptions(settings=SearchConfig())
        engine = TorchEngine(models, trained.tokenizers, options, device=CPU)
        return [torch.tensor(each) for each in engine.attention(sources[rows], targets[rows])]

    both = [trained.transformer, other]
    together = weights(both, slice(0, 3))

    assert [tuple(each.shape) for each in together] == [(2, 3), (4, 1), (0,)]
    for row, result in enumerate(together):
        alone = torch.stack([weights([one], slice(row, row + 1))[0] for one in both]).mean(dim=0)
        torch.testing.assert_close(result, alone)
        assert not len(result) or bool((alone.sum(dim=1) < 1).all())


@pytest.mark.parametrize(
    "options", [["--greedy"], ["--beam", "3"], ["--sampling", "--temperature", "0.1"]], ids=str
)
def test_numbers_are_aligned_with_their_translations(
    tiny_model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm, options: list[str]
) -> None:
    lines = tiny_corpus.lines("test.en")[:20]
    command = ["translate", "-m", str(tiny_model), "--device", "cpu", "--alignment", "hard"]

    result = run_tfm([*command, *options], "".join(f"{line}\n" for line in lines))

    right = total = 0
    for line, written in zip(lines, result.out.split("\n")[:-1], strict=True):
        _, pairs = written.split(" ||| ")
        actual = pairs.split(" ")
        assert sorted(int(pair.split("-")[1]) for pair in actual) == list(range(len(actual)))
        right += sum(f"{word}-{word}" in actual for word in range(len(line.split())))
        total += len(line.split())
    assert right > 0.8 * total


def test_alignment_does_not_depend_on_neighbors_or_window(
    tiny_model: Path, tiny_corpus: TinyCorpus
) -> None:
    lines = [*tiny_corpus.lines("test.en")[:12], "", "one"]
    random.Random(1).shuffle(lines)

    def alignments(**search: int) -> list[Tensor]:
        config = SearchConfig(**search)  # type: ignore[arg-type]
        options = TranslatorOptions(search=config, alignment=True)
        translator = Translator.load(tiny_model, options, device="cpu")
        return [torch.tensor(t.candidates[0].alignment) for t in translator.translate(lines)]

    for actual, expected in zip(
        alignments(max_tokens=20, buffer_size=3), alignments(), strict=True
    ):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_json_and_n_best_lists_contain_alignments(tiny_model: Path, run_tfm: RunTfm) -> None:
    command = [
        "translate",
        "-m",
        str(tiny_model),
        "--device",
        "cpu",
        "--n-best",
        "2",
        "--alignment",
    ]

    soft = run_tfm([*command, "soft", "--format", "json"], "one two\n\n").out.split("\n")[:-1]
    listed = run_tfm([*command, "0.3"], "one two\n\n").out.split("\n")[:-1]

    first, blank = map(json.loads, soft)
    assert first["alignment"] == first["n_best"][0]["alignment"]
    assert [len(row) for row in first["alignment"]] == [2, 2]
    assert all(0 < sum(row) <= 1 for row in first["alignment"])
    assert blank["alignment"] == []
    assert blank["n_best"][1]["alignment"] == []
    assert listed[0].startswith("0 ||| eins zwei ||| ")
    assert listed[2].startswith("1 |||  |||  ||| logprob=0")


@pytest.mark.parametrize("kind", ["firm", "1", "-0.1", "nan"])
def test_unknown_kind_of_alignment_is_refused(run_tfm: RunTfm, kind: str) -> None:
    result = run_tfm(["translate", f"--alignment={kind}"])

    assert result.code == 2
    expected = "expected soft, hard, or a number of at least 0 and below 1"
    assert result.err == f"error: unknown alignment `{kind}`, {expected}\n"
