import dataclasses
import gzip
from pathlib import Path

import pytest

from tests.interop.random_models import TAG, random_model
from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.corpus.sources import sample_path
from tfm_cli.errors import DataError, ResourceError
from tfm_cli.interop import verification
from tfm_cli.interop.verification import probe_lines
from tfm_cli.model_directory.weights import TrainedModel
from tfm_cli.text.reader import open_lines
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer


def test_the_lines_of_a_file_are_the_probe(tmp_path: Path) -> None:
    for name, content in (("a.txt", b"the cat\n\n a mat\n"), ("b.gz", gzip.compress(b"the cat"))):
        (tmp_path / name).write_bytes(content)

    model = random_model()

    assert probe_lines(model, tmp_path / "a.txt") == ["the cat", " a mat"]
    assert probe_lines(model, tmp_path / "b.gz") == ["the cat"]


def test_a_file_without_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n \n")

    with pytest.raises(DataError, match=r"a\.txt: has no line to verify the model with"):
        probe_lines(random_model(), tmp_path / "a.txt")
    with pytest.raises(DataError, match="cannot be read"):
        probe_lines(random_model(), tmp_path / "b.txt")


def test_a_model_that_asks_for_tags_gets_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(f"the cat\n{TAG} a\n>>xyz<< a\n".encode())
    model = random_model(tokenizers="shared")

    result = probe_lines(model, tmp_path / "a.txt")

    assert result == [f"{TAG} the cat", f"{TAG} a", f"{TAG} >>xyz<< a"]
    assert all(line.startswith(f"{TAG} ") for line in probe_lines(model, None))


def test_pieces_that_fit_no_sample_are_drawn_and_never_special() -> None:
    model = random_model(tokenizers="shared")

    result = probe_lines(model, None)

    assert result == probe_lines(model, None)
    assert 12 <= len(result) <= verification.NUM_PROBE_LINES
    source = model.tokenizers.source
    ids = [index for row in source.encode(result) for index in row]
    assert source.unk_id not in ids
    assert source.eos_id not in ids


def sample_model(name: str) -> TrainedModel:
    """Return a model whose tokenizer was trained on a file of the sample corpus."""
    with open_lines(sample_path(name)) as reader:
        config = TokenizerConfig(vocab_size=300, byte_fallback=False)
        pair = TokenizerPair.joint(Tokenizer(train_tokenizer(reader, config, seed=1)))
    return dataclasses.replace(random_model(), tokenizers=pair)


@pytest.mark.parametrize("language", ["en", "fr"])
def test_a_model_for_a_sample_language_gets_its_sentences(language: str) -> None:
    model = sample_model(f"valid.{language}")

    result = probe_lines(model, None)

    text = Path(sample_path(f"test.{language}")).read_text("utf-8").split("\n")
    assert result == text[: verification.NUM_PROBE_LINES]


def test_without_the_sample_corpus_pieces_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise ResourceError("not installed")

    model = sample_model("valid.en")
    monkeypatch.setattr(verification, "sample_path", missing)

    assert len(probe_lines(model, None)) > 12
