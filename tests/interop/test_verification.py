import collections
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.interop.others import QUIET
from tests.interop.random_models import TAG, lines, random_model
from tests.translation.spelling_models import spelling_tokenizer, spelling_transformer
from tfm_cli.errors import ModelError
from tfm_cli.interop import verification
from tfm_cli.interop.ctranslate2 import write_ctranslate2
from tfm_cli.interop.hugging_face.writing import write_hugging_face
from tfm_cli.interop.runtimes import Ids
from tfm_cli.interop.verification import (
    TfmRuntime,
    Verification,
    compare,
    probe_lines,
    verify_ctranslate2,
    verify_hugging_face,
)
from tfm_cli.model_directory.weights import TrainedModel
from tfm_cli.tokenizer.pair import TokenizerPair

pytestmark = [QUIET, pytest.mark.slow]


class Mirror:
    """A runtime that computes what tfm does, except for what a test alters."""

    name = "mirror 1.0"
    max_tokens = 60

    def __init__(self, model: TrainedModel, *, bans_before_softmax: bool = False) -> None:
        self.bans_before_softmax = bans_before_softmax
        self.model = TfmRuntime(model, bans_before_softmax=bans_before_softmax)
        self.tokenizer = model.tokenizers.source
        self.limits: list[int] = []
        self.alter_ids: Callable[[list[Ids]], list[Ids]] = lambda rows: rows
        self.alter_logits: Callable[[list[Tensor]], list[Tensor]] = lambda rows: rows
        self.alter_translations: Callable[[list[Ids], int], list[Ids]] = lambda rows, _: rows

    def encode(self, lines: Sequence[str]) -> list[Ids] | None:
        return self.alter_ids([tuple(ids) for ids in self.tokenizer.encode(lines)])

    def differences(
        self, sources: Sequence[Ids], targets: Sequence[Ids], logits: Sequence[Tensor]
    ) -> list[Tensor]:
        found = self.alter_logits([row.clone() for row in self.model.logits(sources, targets)])
        return [(a - b).abs().amax(dim=1) for a, b in zip(found, logits, strict=True)]

    def search(self, sources: Sequence[Ids], *, beam_size: int, limit: int) -> list[Ids]:
        self.limits.append(limit)
        found = self.model.search(sources, beam_size=beam_size, limit=limit)
        return self.alter_translations([hypotheses[0].ids for hypotheses in found], beam_size)


def test_same_program_has_no_differences() -> None:
    model = random_model()

    result = compare(model, Mirror(model), lines(18))

    assert (result.lines, result.difference, result.near_ties) == (18, 0.0, 0)
    assert result.against == "mirror 1.0"


def test_blank_lines_are_left_out() -> None:
    model = random_model()

    assert compare(model, Mirror(model), ["", "the cat", "  "]).lines == 1


def test_result_fits_one_line() -> None:
    plain = Verification("transformers 5.0", 24, 2e-6, 0, 0)

    assert str(plain) == (
        "verified with transformers 5.0 on 24 lines: logits at most 2.0e-06 apart, "
        "same greedy and beam-4 tokens"
    )
    assert str(dataclasses.replace(plain, near_ties=2)) == f"{plain} (except for 2 near ties)"
    assert str(dataclasses.replace(plain, unfinished=3)).endswith(
        "same greedy tokens, same beam-4 tokens on the 21 whose beams end"
    )
    # The text claims nothing about what was not compared.
    assert str(dataclasses.replace(plain, lines=1, unfinished=1)) == (
        "verified with transformers 5.0 on 1 line: logits at most 2.0e-06 apart, "
        "same greedy tokens; no beam of 4 ends, so none was compared"
    )


def test_left_out_lines_are_reported_with_the_reason() -> None:
    plain = Verification("transformers 5.0", 3, 2e-6, 0, 0)

    some = dataclasses.replace(plain, left_out={"they are odd": 2})
    every = dataclasses.replace(plain, left_out={"they are odd": 2, "they are long": 1})

    assert str(some) == f"{plain}; the segmentation of 2 lines was not compared: they are odd"
    assert not some.is_empty
    assert every.is_empty
    assert str(every).startswith(
        "not verified with transformers 5.0 on 3 lines: the segmentation of no line was "
        "compared; logits at most 2.0e-06 apart"
    )
    assert str(dataclasses.replace(plain, lines=0)) == (
        "not verified with transformers 5.0: the probe has no line with a token"
    )


def test_lines_that_differ_by_design_are_counted() -> None:
    model = random_model()
    lines = ["the cat", "a </s> b", f"{TAG} x", ">>a b<< c", ">> a"]

    result = compare(model, Mirror(model), lines)

    assert sorted(result.left_out.values()) == [1, 2]
    assert not result.is_empty
    assert compare(model, Mirror(model), [TAG]).is_empty


def test_nothing_is_verified_without_a_token() -> None:
    model = random_model()

    assert compare(model, Mirror(model), []).is_empty


def test_differing_source_ids_are_a_mismatch() -> None:
    model = random_model()
    mirror = Mirror(model)
    mirror.alter_ids = lambda rows: [*rows[:2], (*rows[2][:1], 7), *rows[3:]]

    with pytest.raises(ModelError, match=r"mirror 1\.0 does not compute what tfm computes: ") as e:
        compare(model, mirror, ["the cat", "a", "the cat sat"])

    assert "probe line 3, token 2: expected ids [" in str(e.value)
    assert e.value.hint is not None


def test_special_tokens_in_a_text_are_not_a_mismatch() -> None:
    model = random_model()
    mirror = Mirror(model)
    mirror.alter_ids = lambda rows: rows[:1] and [rows[0]]

    assert compare(model, mirror, ["the cat", "a </s> b", "<unk>", f"{TAG} x"]).lines == 4


def test_differing_logits_are_a_mismatch_with_line_and_token() -> None:
    model = random_model()
    mirror = Mirror(model)

    def alter(rows: list[Tensor]) -> list[Tensor]:
        rows[1][0, 5] += 0.01
        return rows

    mirror.alter_logits = alter

    expected = r"probe line 2, token 1 \(`.+`\): logits differ by 0\.01, expected at most 0\.0001$"
    with pytest.raises(ModelError, match=expected):
        compare(model, mirror, lines(3))


def test_nan_logit_is_a_mismatch() -> None:
    model = random_model()
    mirror = Mirror(model)

    def alter(rows: list[Tensor]) -> list[Tensor]:
        rows[0][0, 0] = torch.nan
        return rows

    mirror.alter_logits = alter

    with pytest.raises(ModelError, match="logits differ by nan"):
        compare(model, mirror, lines(3))


@pytest.mark.parametrize("beam_size", [1, 4])
def test_differing_translation_is_a_mismatch_with_line_and_token(beam_size: int) -> None:
    model = random_model()
    mirror = Mirror(model)
    mirror.alter_translations = lambda rows, beam: [
        (9, 9, 9) if beam == beam_size else row for row in rows
    ]

    expected = rf"probe line 1, beam {beam_size}, token \d: expected `.+`, got `.+`, "
    with pytest.raises(ModelError, match=expected):
        compare(model, mirror, lines(6))


def test_translations_that_score_the_same_are_near_ties() -> None:
    """Two tokens with the same row in every matrix always score the same."""
    model = random_model()
    ids = collections.Counter(index for result in translated(model) for index in result)
    one = ids.most_common(1)[0][0]
    other = next(i for i in range(4, model.tokenizers.target.vocab_size) if i not in ids)
    weight = model.transformer.target_embedding.weight.data
    weight[other] = weight[one]
    mirror = Mirror(model)
    swapped = {one: other, other: one}
    mirror.alter_translations = lambda rows, beam: [
        tuple(swapped.get(index, index) for index in row) for row in rows
    ]

    result = compare(model, mirror, lines(20))

    assert result.near_ties >= 1


def translated(model: TrainedModel) -> list[Ids]:
    ours = TfmRuntime(model, bans_before_softmax=False)
    sources = [tuple(ids) for ids in model.tokenizers.source.encode(lines(20))]
    with torch.no_grad():
        return [found[0].ids for found in ours.search(sources, beam_size=1, limit=20)]


def test_beams_that_reach_the_limit_are_counted_and_not_compared() -> None:
    model = random_model()
    model.transformer.target_embedding.weight.data[model.tokenizers.target.eos_id] *= -3
    mirror = Mirror(model)
    mirror.alter_translations = lambda rows, beam: [() if beam == 4 else row for row in rows]

    result = compare(model, mirror, lines(20))

    assert result.unfinished >= 10


def test_long_lines_are_truncated_to_the_positions() -> None:
    model = random_model()
    mirror = Mirror(model)
    mirror.max_tokens = 12

    compare(model, mirror, ["the cat sat on a mat " * 50])

    assert set(mirror.limits) == {12}


def test_missing_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)

    results = [
        verify(random_model(), tmp_path, ["a"])
        for verify in (verify_hugging_face, verify_ctranslate2)
    ]

    assert [str(result) for result in results] == [
        "not verified: transformers is not installed",
        "not verified: ctranslate2 is not installed",
    ]
    assert all(result.is_empty for result in results)


def test_export_to_hugging_face_is_verified_and_a_changed_one_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    model = random_model(tokenizers="shared", activation="swish", output_bias=True)
    write_hugging_face(tmp_path, model)
    text = probe_lines(model, None)

    verified = verify_hugging_face(model, tmp_path, text)

    assert 0 < verified.difference < 1e-4
    assert verified.against.startswith("transformers ")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.decoder.layers.1.fc2.bias"][3] += 0.1
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"logits differ by .+, expected at most"):
        verify_hugging_face(model, tmp_path, text)


def test_directory_that_hugging_face_cannot_load_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")

    with pytest.raises(ModelError, match=r"transformers .* does not load the model: "):
        verify_hugging_face(random_model(), tmp_path, ["a"])


def test_other_special_ids_in_the_directory_do_not_matter(tmp_path: Path) -> None:
    """Ours are used: those of a directory may be missing, or meant for another search."""
    pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    model = random_model()
    write_hugging_face(tmp_path, model)
    (tmp_path / "generation_config.json").write_text(
        '{"num_beams": 2, "max_length": 5, "forced_eos_token_id": 7, "eos_token_id": 9, '
        '"bad_words_ids": [[5]], "repetition_penalty": 3.0}'
    )

    assert verify_hugging_face(model, tmp_path, lines(10)).lines == 10


def test_export_to_ctranslate2_is_verified_and_a_changed_one_refused(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    model = random_model(norm="pre", positions="rotary", activation="swiglu")
    write_ctranslate2(tmp_path, model, quantization=None)
    text = probe_lines(model, None)

    verified = verify_ctranslate2(model, tmp_path, text)

    assert 0 < verified.difference < 1e-4
    model.transformer.target_embedding.weight.data[9] += 0.1
    with pytest.raises(ModelError, match=r"CTranslate2 .+ logits differ by .+, expected"):
        verify_ctranslate2(model, tmp_path, text)


def test_directory_that_ctranslate2_cannot_load_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")

    with pytest.raises(ModelError, match=r"CTranslate2 .* does not load the model: "):
        verify_ctranslate2(random_model(), tmp_path, ["a"])


def test_unusable_installation_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise ImportError("huggingface-hub>=9 is required\nand more")

    monkeypatch.setattr(verification, "is_installed", lambda package: True)
    monkeypatch.setattr(verification, "HuggingFaceRuntime", refuse)

    assert str(verify_hugging_face(random_model(), tmp_path, ["a"])) == (
        "not verified: transformers cannot be used: huggingface-hub>=9 is required"
    )


@torch.inference_mode()
def test_search_may_write_bytes_that_are_not_text() -> None:
    """Other programs have no such constraint, so a comparison must not have it either."""
    tokenizer = spelling_tokenizer()
    model: Any = SimpleNamespace(
        transformer=spelling_transformer(tokenizer, 1), tokenizers=TokenizerPair.joint(tokenizer)
    )
    sources = [tuple(ids) for ids in tokenizer.encode(["one two", "three four five"])]

    result = TfmRuntime(model, bans_before_softmax=False).search(sources, beam_size=1, limit=20)

    texts = tokenizer.decode([list(hypotheses[0].ids) for hypotheses in result])
    assert any("\ufffd" in text for text in texts)
