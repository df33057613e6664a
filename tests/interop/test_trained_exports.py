"""A trained model gives the same translations in every program, on a thousand sentences."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import RunTfm, invoke
from tfm_cli.corpus.sources import sample_path
from tfm_cli.decoding.interface import output_limit
from tfm_cli.evaluation.scores import corpus_scores
from tfm_cli.model_directory.config_file import load_config, load_tokenizers
from tfm_cli.model_directory.weights import load_model
from tfm_cli.translation.translator import Translator, TranslatorOptions

pytestmark = [
    pytest.mark.torture,
    pytest.mark.timeout(1200),
    # Its punctuation normalizer is not used for encoding.
    pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses"),
]
_BATCH = 100
_LONGEST = 120  # tokens: more than the limit of any line of the corpus


@pytest.fixture(scope="module")
def model(sample_model: Path) -> Path:
    return sample_model


@pytest.fixture(scope="module")
def source() -> list[str]:
    return Path(sample_path("test.en")).read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def reference() -> list[str]:
    return Path(sample_path("test.fr")).read_text(encoding="utf-8").split("\n")[:-1]


def exported(model: Path, to: str, output: Path) -> None:
    result = invoke(["export", str(model), "--to", to, "--output", str(output)])
    assert result.code == 0, result.err
    assert "verified with" in result.err


def translated(model: Path, source: list[str], **how: Any) -> tuple[list[str], set[int]]:
    """Return the translations, and the indices of those that reached the length limit."""
    saved = load_config(model).settings.search
    search = dataclasses.replace(saved, **how)
    translator = Translator.load(model, TranslatorOptions(search=search), device="cpu")
    pieces = load_tokenizers(model, load_config(model)).source.encode(source)
    found = list(translator.translate(source))
    limits = [output_limit(len(ids), search.max_length_factor) for ids in pieces]
    cut = {
        index
        for index, (translation, limit) in enumerate(zip(found, limits, strict=True))
        if translation.num_tokens > limit
    }
    return [translation.text for translation in found], cut


def assert_same(
    actual: list[str], expected: tuple[list[str], set[int]], reference: list[str]
) -> None:
    """Check that translations are equal, except where ours reached a limit that others lack."""
    ours, cut = expected
    assert len(actual) == len(ours) == 1000
    assert len(cut) < 10
    kept = [index for index in range(1000) if index not in cut]
    assert [index for index in kept if actual[index] != ours[index]] == []
    references = [[reference[index] for index in kept]]
    scores = [
        corpus_scores([lines[index] for index in kept], references, metrics=["bleu"])[0].value
        for lines in (actual, ours)
    ]
    assert round(scores[0], 2) == round(scores[1], 2)
    assert scores[0] > 70  # the model did learn


def test_hugging_face_translates_as_tfm_does(
    model: Path, source: list[str], reference: list[str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="install tfm-cli[hf]")
    exported(model, "hf", tmp_path / "hf")
    marian = transformers.MarianMTModel.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / "hf")
    order = sorted(range(len(source)), key=lambda index: len(source[index]))

    result = [""] * len(source)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        batch = tokenizer([source[i] for i in chosen], return_tensors="pt", padding=True)
        ids = marian.generate(
            **batch, max_length=_LONGEST
        )  # all other options come with the export
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            result[index] = text

    assert_same(result, translated(model, source), reference)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_ctranslate2_translates_as_tfm_does(
    beam_size: int, model: Path, source: list[str], reference: list[str], tmp_path: Path
) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="install tfm-cli[ctranslate2]")
    exported(model, "ctranslate2", tmp_path / "ct2")
    translator = ctranslate2.Translator(str(tmp_path / "ct2"), intra_threads=1)
    tokenizers = load_tokenizers(model, load_config(model))
    pieces = tokenizers.source.encode_pieces(source)

    results = translator.translate_batch(
        pieces, beam_size=beam_size, length_penalty=1, max_batch_size=_BATCH,
        min_decoding_length=0, max_decoding_length=_LONGEST,
    )  # fmt: skip
    actual = tokenizers.target.decode_pieces([result.hypotheses[0] for result in results])

    # It always stops once the beam's number of hypotheses is finished.
    expected = translated(model, source, beam_size=beam_size, early_stopping=True)
    assert_same(actual, expected, reference)


def test_round_trip_to_hugging_face_is_bit_exact(
    model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    exported(model, "hf", tmp_path / "hf")

    result = run_tfm(["import", str(tmp_path / "hf"), "--output", str(tmp_path / "again")])

    assert result.code == 0, result.err
    ours, again = (load_model(path, torch.device("cpu")) for path in (model, tmp_path / "again"))
    tensors, returned = ours.transformer.state_dict(), again.transformer.state_dict()
    assert tensors.keys() == returned.keys()
    assert all(torch.equal(tensors[name], returned[name]) for name in tensors)
    assert again.tokenizers.files() == ours.tokenizers.files()
    assert again.config.model == ours.config.model
    assert again.config.search.beam_size == ours.config.search.beam_size
