import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model_directory.damage import copied
from tests.tiers import representative
from tfm_cli.errors import ModelError
from tfm_cli.interop import importing
from tfm_cli.interop.hugging_face.reading import read_hugging_face
from tfm_cli.interop.importing import import_model
from tfm_cli.model_directory.weights import load_model

transformers = pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytest.importorskip("yaml", reason="needs tfm-cli[marian]")
# Warnings of transformers do not concern us.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


CPU = torch.device("cpu")


@representative("positions", ["marian", "halves"])
@representative("padding", [1, 700])
def test_npz_is_verified_by_ctranslate2s_reader(
    marian: Path, tmp_path: Path, log_messages: list[str], positions: str, padding: int, probe: Path
) -> None:
    pytest.importorskip("ctranslate2", reason="needs tfm-cli[ctranslate2]")
    import numpy as np

    source = tmp_path / "source"
    source.mkdir()
    for path in marian.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    arrays = dict(np.load(source / "model.npz"))
    options = arrays["special:model.yml"].tobytes().rstrip(b"\0") + bytes(padding)
    arrays["special:model.yml"] = np.frombuffer(options, dtype=np.int8)
    np.savez(source / "model.npz", **arrays)

    import_model(str(source), tmp_path / "model", positions=positions, probe=probe)

    assert any(message.startswith("verified with CTranslate2") for message in log_messages)
    shape = load_model(tmp_path / "model", CPU).config.model
    assert shape.positions == f"sinusoidal_{positions}"


def test_what_computes_something_else_is_not_kept(
    hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: Path
) -> None:
    def read_wrong(directory: Path, *, allow_pickle: bool) -> Any:
        imported = read_hugging_face(directory, allow_pickle=allow_pickle)
        imported.weights["decoder_layers.0.cross_attention.output.bias"][3] += 0.1
        return imported

    monkeypatch.setattr(importing, "read_hugging_face", read_wrong)

    with pytest.raises(ModelError, match="does not compute what tfm computes"):
        import_model(str(hugging_face), tmp_path / "model", probe=probe)

    assert list(tmp_path.iterdir()) == []


@representative("library", ["transformers", "ctranslate2"])
def test_without_the_library_the_model_is_not_verified(
    hugging_face: Path, marian: Path, tmp_path: Path, log_messages: list[str],
    monkeypatch: pytest.MonkeyPatch, library: str, probe: Path,
) -> None:  # fmt: skip
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == library else find_spec(name)
    )
    source = hugging_face if library == "transformers" else marian

    import_model(str(source), tmp_path / "model", probe=probe)

    assert f"not verified: {library} is not installed" in log_messages
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"not verified: {library} is not installed" in card


def test_models_are_compared_on_the_probe(
    hugging_face: Path, tmp_path: Path, log_messages: list[str], probe: Path
) -> None:
    import_model(str(hugging_face), tmp_path / "model", probe=probe)

    assert any("on 3 lines" in message for message in log_messages)


def test_archive_in_another_byte_order_is_verified(
    marian: Path, tmp_path: Path, log_messages: list[str], probe: Path
) -> None:
    pytest.importorskip("ctranslate2", reason="needs tfm-cli[ctranslate2]")
    import numpy as np

    source = copied(marian, tmp_path / "source")
    arrays = {
        name: array if array.dtype == np.int8 else array.astype(array.dtype.newbyteorder())
        for name, array in np.load(source / "model.npz").items()
    }
    np.savez(source / "model.npz", **arrays)

    import_model(str(source), tmp_path / "model", probe=probe)

    assert any(message.startswith("verified with CTranslate2") for message in log_messages)


def test_vocabulary_with_a_byte_order_mark_is_verified(
    marian: Path, tmp_path: Path, log_messages: list[str], probe: Path
) -> None:
    pytest.importorskip("ctranslate2", reason="needs tfm-cli[ctranslate2]")
    source = copied(marian, tmp_path / "source")
    for name in ("opus.vocab.yml", "decoder.yml"):
        (source / name).write_bytes(b"\xef\xbb\xbf" + (source / name).read_bytes())

    import_model(str(source), tmp_path / "model", probe=probe)

    assert any(message.startswith("verified with CTranslate2") for message in log_messages)


def test_json_with_a_byte_order_mark_is_verified(
    hugging_face: Path, tmp_path: Path, log_messages: list[str], probe: Path
) -> None:
    source = copied(hugging_face, tmp_path / "source")
    for path in source.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    import_model(str(source), tmp_path / "model", probe=probe)

    assert any(message.startswith("verified with transformers") for message in log_messages)
