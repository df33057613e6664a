import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import RunTfm
from tests.interop.damage import Damage, cut, refused, replaced, written
from tests.interop.marian_directories import (
    changed_json,
    write_json,
)
from tests.model_directory.damage import copied

pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytest.importorskip("yaml", reason="needs tfm-cli[marian]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us


class Program:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def safetensors_of_header(header_bytes: int) -> Damage:
    def damage(source: Path) -> None:
        with (source / "model.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", header_bytes))
            stream.truncate(8 + header_bytes)  # sparse: it takes no space on the disk

    return damage


def with_vocabulary(change: Callable[[dict[str, object]], object]) -> Damage:
    def damage(source: Path) -> None:
        path = source / "vocab.json"
        table = json.loads(path.read_text(encoding="utf-8"))
        change(table)
        write_json(path, table)

    return damage


def swapped_ids(table: dict[str, object]) -> None:
    first, second = list(table)[5:7]
    table[first] = table[second]


HUGGING_FACE: dict[str, tuple[Damage, str]] = {
    "truncated": (cut("model.safetensors", 5000), "is damaged or not a safetensors file"),
    "empty": (cut("model.safetensors", 0), "is damaged or not a safetensors file"),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), "has no weights"),
    "pickle by another name": (
        written("model.safetensors", pickle.dumps({"a": 1}, protocol=4) * 20),
        "is damaged or not a safetensors file",
    ),
    "huge header": (safetensors_of_header(100 << 20), "its header has 104857600 bytes, expected"),
    "header of nothing": (safetensors_of_header(1000), "is damaged or not a safetensors file"),
    "other width": (
        lambda s: changed_json(s / "config.json", d_model=32), ", 16), expected ("
    ),
    "more layers": (
        lambda s: changed_json(s / "config.json", encoder_layers=3), "missing"
    ),
    "huge model": (
        lambda s: changed_json(s / "config.json", d_model=16384, encoder_layers=128,
                               encoder_ffn_dim=65536, decoder_ffn_dim=65536), "… and",
    ),
    "missing entry": (
        with_vocabulary(lambda table: table.popitem()), "has no piece"
    ),
    "vocabulary of another size": (
        lambda s: changed_json(s / "config.json", vocab_size=60, decoder_vocab_size=60),
        "pieces, expected 60 as in config.json",
    ),
    "id twice": (with_vocabulary(swapped_ids), "both have the id"),
    "negative id": (with_vocabulary(lambda t: t.update({"</s>": -1})), "`</s>` has the id -1"),
    "bool for an id": (with_vocabulary(lambda t: t.update({"<unk>": True})), "`True` for an id"),
    "text for an id": (with_vocabulary(lambda t: t.update({"<unk>": "1"})), "`1` for an id"),
    "list for a vocabulary": (written("vocab.json", b"[1]"), "is not a JSON object"),
    "piece twice": (written("vocab.json", b'{"a": 0, "a": 1}'), "`a` occurs twice"),
    "deep nesting": (written("config.json", b"[" * 100_000), "is damaged or not JSON"),
    "no UTF-8": (written("config.json", b'{"\xff": 1}'), "is damaged or not JSON"),
    "no tokenizer": (lambda s: (s / "source.spm").unlink(), "source.spm: is missing"),
    "damaged tokenizer": (cut("target.spm", 100), "is not a SentencePiece model"),
    "directory": (replaced("vocab.json", Path.mkdir), "vocab.json: is not a regular file"),
    "pipe": (replaced("vocab.json", os.mkfifo), "vocab.json: is not a regular file"),
    "pipe for weights": (replaced("model.safetensors", os.mkfifo), "is not a regular file"),
    "device": (
        replaced("source.spm", lambda p: p.symlink_to("/dev/zero")), "leads out of the directory"
    ),
    "link to elsewhere": (
        replaced("vocab.json", lambda p: p.symlink_to("/etc/hostname")),
        "vocab.json: is a link that leads out of the directory",
    ),
    "link to nothing": (replaced("vocab.json", lambda p: p.symlink_to("gone")), "cannot be read"),
    "circle of links": (
        replaced("vocab.json", lambda p: p.symlink_to("vocab.json")), "cannot be read"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_damaged_hugging_face_directory_is_refused(
    hugging_face: Path, tmp_path: Path, run_tfm: RunTfm, name: str
) -> None:
    damage, message = HUGGING_FACE[name]
    source = copied(hugging_face, tmp_path / "source")
    damage(source)

    refused(run_tfm, source, message)


def test_code_in_a_pickle_is_not_run(hugging_face: Path, tmp_path: Path, run_tfm: RunTfm) -> None:
    source = copied(hugging_face, tmp_path / "source")
    (source / "model.safetensors").unlink()
    torch.save({"a": Program(tmp_path / "made")}, source / "pytorch_model.bin")

    refused(run_tfm, source, "is damaged, or holds more than tensors", flags=("--allow-pickle",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "is not a table of tensors"),
        ({"a": 1}, "a: is a int"),
        ({"a": torch.ones(1).expand(1 << 40)}, "but fewer values"),
        ({"a": torch.ones(2).to_sparse()}, "is a tensor of another kind"),
    ],
)
def test_pickle_of_other_objects_is_refused(
    hugging_face: Path, tmp_path: Path, run_tfm: RunTfm, content: object, message: str
) -> None:
    source = copied(hugging_face, tmp_path / "source")
    (source / "model.safetensors").unlink()
    torch.save(content, source / "pytorch_model.bin")

    refused(run_tfm, source, message, flags=("--allow-pickle",))


def test_compressed_pickle_is_refused(hugging_face: Path, tmp_path: Path, run_tfm: RunTfm) -> None:
    source = copied(hugging_face, tmp_path / "source")
    (source / "model.safetensors").unlink()
    with zipfile.ZipFile(source / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))

    refused(run_tfm, source, "is compressed", flags=("--allow-pickle",))
