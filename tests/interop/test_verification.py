import collections
import dataclasses
import gzip
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.interop.others import QUIET
from tests.interop.random_models import TAG, lines, random_model
from tfm_cli.config import TokenizerConfig
from tfm_cli.corpus.sample import sample_path
from tfm_cli.errors import DataError, ModelError, ResourceError
from tfm_cli.interop import probe
from tfm_cli.interop.ctranslate2_export import write_ctranslate2
from tfm_cli.interop.hugging_face_export import write_hugging_face
from tfm_cli.interop.our_side import OurSide
from tfm_cli.interop.runtime import Ids
from tfm_cli.interop.verification import (
    Verification,
    compare,
    kept_translations,
    probe_lines,
    verify_ctranslate2,
    verify_hugging_face,
)
from tfm_cli.model_dir import TrainedModel
from tfm_cli.text import open_lines
from tfm_cli.tokenizer import Tokenizer
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.tokenizer_training import train_tokenizer

pytestmark = QUIET


class Mirror:
    """A program that does what tfm does, but for what a test alters."""

    name = "mirror 1.0"
    most_pieces = 60

    def __init__(self, model: TrainedModel, *, bans_before_softmax: bool = False) -> None:
        self.bans_before_softmax = bans_before_softmax
        self.us = OurSide(model, bans_before_softmax=bans_before_softmax)
        self.tokenizer = model.tokenizers.source
        self.limits: list[int] = []
        self.alter_ids: Callable[[list[Ids]], list[Ids]] = lambda rows: rows
        self.alter_logits: Callable[[list[Tensor]], list[Tensor]] = lambda rows: rows
        self.alter_found: Callable[[list[Ids], int], list[Ids]] = lambda rows, beam_size: rows

    def encode(self, lines: Sequence[str]) -> list[Ids] | None:
        return self.alter_ids([tuple(ids) for ids in self.tokenizer.encode(lines)])

    def differences(
        self, sources: Sequence[Ids], targets: Sequence[Ids], logits: Sequence[Tensor]
    ) -> list[Tensor]:
        found = self.alter_logits([row.clone() for row in self.us.logits(sources, targets)])
        return [(a - b).abs().amax(dim=1) for a, b in zip(found, logits, strict=True)]

    def search(self, sources: Sequence[Ids], *, beam_size: int, limit: int) -> list[Ids]:
        self.limits.append(limit)
        found = self.us.search(sources, beam_size=beam_size, limit=limit)
        return self.alter_found([hypotheses[0].ids for hypotheses in found], beam_size)


def test_the_same_program_differs_in_nothing() -> None:
    model = random_model()

    found = compare(model, Mirror(model), lines(18))

    assert (found.lines, found.difference, found.near_ties) == (18, 0.0, 0)
    assert found.against == "mirror 1.0"


def test_blank_lines_are_left_out() -> None:
    model = random_model()

    assert compare(model, Mirror(model), ["", "the cat", "  "]).lines == 1


def test_what_was_found_fits_a_line() -> None:
    plain = Verification("transformers 5.0", 24, 2e-6, 0, 0)

    assert str(plain) == (
        "verified with transformers 5.0 on 24 lines: logits at most 2.0e-06 apart, "
        "same greedy and beam-4 pieces"
    )
    more = dataclasses.replace(plain, near_ties=2, unfinished=3)
    assert str(more) == f"{plain} but for 2 near ties, 3 beams without an end"


def test_other_ids_of_a_source_are_a_mismatch() -> None:
    model = random_model()
    mirror = Mirror(model)
    mirror.alter_ids = lambda rows: [*rows[:2], (*rows[2][:1], 7), *rows[3:]]

    with pytest.raises(ModelError, match=r"mirror 1\.0 does not compute what tfm computes: ") as e:
        compare(model, mirror, ["the cat", "a", "the cat sat"])

    assert "probe line 3, piece 2: found ids [" in str(e.value)
    assert e.value.hint is not None


def test_special_pieces_in_a_text_are_no_mismatch() -> None:
    model = random_model()
    mirror = Mirror(model)
    mirror.alter_ids = lambda rows: rows[:1] and [rows[0]]

    assert compare(model, mirror, ["the cat", "a </s> b", "<unk>", f"{TAG} x"]).lines == 4


def test_logits_apart_are_a_mismatch_with_line_and_piece() -> None:
    model = random_model()
    mirror = Mirror(model)

    def alter(rows: list[Tensor]) -> list[Tensor]:
        rows[1][0, 5] += 0.01
        return rows

    mirror.alter_logits = alter

    wanted = r"probe line 2, piece 1 \(`.+`\): found logits 0\.01 apart, wanted at most 0\.0001$"
    with pytest.raises(ModelError, match=wanted):
        compare(model, mirror, lines(3))


def test_a_logit_that_is_no_number_is_a_mismatch() -> None:
    model = random_model()
    mirror = Mirror(model)

    def alter(rows: list[Tensor]) -> list[Tensor]:
        rows[0][0, 0] = torch.nan
        return rows

    mirror.alter_logits = alter

    with pytest.raises(ModelError, match="found logits nan apart"):
        compare(model, mirror, lines(3))


@pytest.mark.parametrize("beam_size", [1, 4])
def test_another_translation_is_a_mismatch_with_line_and_piece(beam_size: int) -> None:
    model = random_model()
    mirror = Mirror(model)
    mirror.alter_found = lambda rows, beam: [
        (9, 9, 9) if beam == beam_size else row for row in rows
    ]

    wanted = rf"probe line 1, beam {beam_size}, piece \d: found `.+`, wanted `.+`, whose "
    with pytest.raises(ModelError, match=wanted):
        compare(model, mirror, lines(6))


def test_translations_that_score_the_same_are_near_ties() -> None:
    """Two pieces with the same row in every matrix are as good as each other, always."""
    model = random_model()
    ids = collections.Counter(index for found in translated(model) for index in found)
    one = ids.most_common(1)[0][0]
    other = next(i for i in range(4, model.tokenizers.target.vocab_size) if i not in ids)
    weight = model.transformer.target_embedding.weight.data
    weight[other] = weight[one]
    mirror = Mirror(model)
    swapped = {one: other, other: one}
    mirror.alter_found = lambda rows, beam: [
        tuple(swapped.get(index, index) for index in row) for row in rows
    ]

    found = compare(model, mirror, lines(20))

    assert found.near_ties >= 1


def translated(model: TrainedModel) -> list[Ids]:
    us = OurSide(model, bans_before_softmax=False)
    sources = [tuple(ids) for ids in model.tokenizers.source.encode(lines(20))]
    with torch.no_grad():
        return [found[0].ids for found in us.search(sources, beam_size=1, limit=20)]


def test_beams_that_meet_the_limit_are_counted_and_not_compared() -> None:
    model = random_model()
    model.transformer.target_embedding.weight.data[model.tokenizers.target.eos_id] *= -3
    mirror = Mirror(model)
    mirror.alter_found = lambda rows, beam: [() if beam == 4 else row for row in rows]

    found = compare(model, mirror, lines(20))

    assert found.unfinished >= 10


def test_long_lines_are_cut_to_the_positions_that_there_are() -> None:
    model = random_model()
    mirror = Mirror(model)
    mirror.most_pieces = 12

    compare(model, mirror, ["the cat sat on a mat " * 50])

    assert set(mirror.limits) == {12}


def test_without_the_library_it_is_told_that_nothing_was_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)

    assert verify_hugging_face(random_model(), tmp_path, ["a"]) is None
    assert verify_ctranslate2(random_model(), tmp_path, ["a"]) is None

    assert told == [
        "not verified: transformers is not installed",
        "not verified: ctranslate2 is not installed",
    ]


def test_an_export_to_hugging_face_is_verified_and_a_changed_one_is_not(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    model = random_model(tokenizers="shared", activation="swish", output_bias=True)
    write_hugging_face(tmp_path, model)
    text = probe_lines(model, None, seed=1)

    verified = verify_hugging_face(model, tmp_path, text)

    assert verified is not None
    assert 0 < verified.difference < 1e-4
    assert verified.against.startswith("transformers ")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.decoder.layers.1.fc2.bias"][3] += 0.1
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"found logits .+ apart, wanted at most"):
        verify_hugging_face(model, tmp_path, text)


def test_a_directory_that_hugging_face_does_not_load_is_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")

    with pytest.raises(ModelError, match=r"transformers .* does not load the model: "):
        verify_hugging_face(random_model(), tmp_path, ["a"])


def test_other_special_ids_in_the_directory_do_not_matter(tmp_path: Path) -> None:
    """They are the model's: those of a directory may be missing, or said for another search."""
    pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    model = random_model()
    write_hugging_face(tmp_path, model)
    (tmp_path / "generation_config.json").write_text(
        '{"num_beams": 2, "max_length": 5, "forced_eos_token_id": 7, "eos_token_id": 9, '
        '"bad_words_ids": [[5]], "repetition_penalty": 3.0}'
    )

    assert verify_hugging_face(model, tmp_path, lines(10)) is not None


def test_an_export_to_ctranslate2_is_verified_and_a_changed_one_is_not(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    model = random_model(norm="pre", positions="rotary", activation="swiglu")
    write_ctranslate2(tmp_path, model, quantization=None)
    text = probe_lines(model, None, seed=1)

    verified = verify_ctranslate2(model, tmp_path, text)

    assert verified is not None
    assert 0 < verified.difference < 1e-4
    model.transformer.target_embedding.weight.data[9] += 0.1
    with pytest.raises(ModelError, match=r"CTranslate2 .+ found logits .+ apart, wanted"):
        verify_ctranslate2(model, tmp_path, text)


def test_a_directory_that_ctranslate2_does_not_load_is_told(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")

    with pytest.raises(ModelError, match=r"CTranslate2 .* does not load the model: "):
        verify_ctranslate2(random_model(), tmp_path, ["a"])


def test_coarse_weights_keep_most_translations(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    model = random_model()
    write_ctranslate2(tmp_path, model, quantization="float16")

    kept, total = kept_translations(model, tmp_path, [*lines(20), ""])

    assert total == 20
    assert 10 <= kept <= 20


def test_the_lines_of_a_file_are_the_probe(tmp_path: Path) -> None:
    for name, content in (("a.txt", b"the cat\n\n a mat\n"), ("b.gz", gzip.compress(b"the cat"))):
        (tmp_path / name).write_bytes(content)

    model = random_model()

    assert probe_lines(model, tmp_path / "a.txt", seed=1) == ["the cat", " a mat"]
    assert probe_lines(model, tmp_path / "b.gz", seed=1) == ["the cat"]


def test_a_file_without_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n \n")

    with pytest.raises(DataError, match=r"a\.txt: has no line to verify the model with"):
        probe_lines(random_model(), tmp_path / "a.txt", seed=1)
    with pytest.raises(DataError, match="cannot be read"):
        probe_lines(random_model(), tmp_path / "b.txt", seed=1)


def test_a_model_that_asks_for_tags_gets_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(f"the cat\n{TAG} a\n>>xyz<< a\n".encode())
    model = random_model(tokenizers="shared")

    found = probe_lines(model, tmp_path / "a.txt", seed=1)

    assert found == [f"{TAG} the cat", f"{TAG} a", f"{TAG} >>xyz<< a"]
    assert all(line.startswith(f"{TAG} ") for line in probe_lines(model, None, seed=1))


def test_pieces_that_fit_no_sample_are_drawn_and_never_special() -> None:
    model = random_model(tokenizers="shared")

    found = probe_lines(model, None, seed=1)

    assert found == probe_lines(model, None, seed=1) != probe_lines(model, None, seed=2)
    assert 12 <= len(found) <= probe.NUM_LINES
    source = model.tokenizers.source
    ids = [index for row in source.encode(found) for index in row]
    assert source.unk_id not in ids
    assert source.eos_id not in ids


def sample_model(name: str) -> TrainedModel:
    """A model whose pieces were learned from a file of the sample corpus."""
    with open_lines(sample_path(name)) as reader:
        config = TokenizerConfig(vocab_size=300, byte_fallback=False)
        pair = TokenizerPair.joint(Tokenizer(train_tokenizer(reader, config, seed=1)))
    return dataclasses.replace(random_model(), tokenizers=pair)


@pytest.mark.parametrize("language", ["en", "fr"])
def test_a_model_for_a_sample_language_gets_its_sentences(language: str) -> None:
    model = sample_model(f"valid.{language}")

    found = probe_lines(model, None, seed=1)

    text = Path(sample_path(f"test.{language}")).read_text("utf-8").split("\n")
    assert found == text[: probe.NUM_LINES]


def test_without_the_sample_corpus_pieces_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise ResourceError("not installed")

    model = sample_model("valid.en")
    monkeypatch.setattr(probe, "sample_path", missing)

    assert len(probe_lines(model, None, seed=1)) > 12
