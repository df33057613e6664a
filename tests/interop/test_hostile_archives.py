import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RunTfm
from tests.interop.damage import Damage, cut, refused, replaced, written
from tests.model_directory.damage import copied

pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytest.importorskip("yaml", reason="needs tfm-cli[marian]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us


def npz_with(name: str, content: bytes, *, compressed: bool = False) -> Damage:
    """Add a raw member to the archive."""

    def damage(source: Path) -> None:
        kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(source / "model.npz", "a", kind) as archive:
            archive.writestr(f"{name}.npy", content)

    return damage


def array_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header_of(shape: str) -> bytes:
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117))


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + f"{text}\n".encode()


# Each of these has made `ast`, `tokenize` or NumPy raise something other than a ValueError.
HEADERS = {
    "signs": "-" * 9000 + "1",
    "parentheses": "(" * 9000,
    "sums": "1+" * 4000 + "1",
    "open string": "'''",
    "open table": "{",
    "indentation": "\n  x\n y",
    "names of two types": "{1: 2, 'a': 3}",
    "list for a name": "{[]: 1}",
    "type of one part": "{'descr': ('<f4',), 'fortran_order': False, 'shape': (1,), }",
    "truth for a size": "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
    "unknown type": "{'descr': '<q9', 'fortran_order': False, 'shape': (1,), }",
    "type twice": "{'descr': '<f4', 'descr': '<f4', 'shape': (1,), }",
    "no type": "{'descr': False, 'fortran_order': False, 'shape': (1,), }",
    "digits": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 9000 + ",), }",
    "commas": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "," * 9000 + "), }",
}


def decoder_of(text: str) -> Damage:
    return written("decoder.yml", text.encode())


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n"
    for old, new in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)
MARIAN: dict[str, tuple[Damage, str]] = {
    "truncated": (cut("model.npz", 3000), "is damaged or not an `.npz` archive"),
    "empty": (cut("model.npz", 0), "is damaged or not an `.npz` archive"),
    "objects": (
        npz_with("evil", array_bytes(np.array([{}], dtype=object))), "`evil` is a pickle of objects"
    ),
    "text": (npz_with("evil", array_bytes(np.array(["a"]))), "has type <U1, expected numbers"),
    "long numbers": (
        npz_with("evil", array_bytes(np.ones(2, dtype=np.longdouble))),
        f"`evil` has type {np.dtype(np.longdouble)}, expected float16, float32 or float64",
    ),
    "no array": (npz_with("evil", b"what"), "`evil` is damaged or not an array"),
    "huge shape": (
        npz_with("evil", header_of("(1099511627776, 16)")), "for its shape (1099511627776, 16)"
    ),
    "negative shape": (npz_with("evil", header_of("(-4, 16)")), "`evil`"),
    "bomb": (
        npz_with("evil", header_of("(16777216,)") + bytes(1 << 26), compressed=True),
        "`evil` unpacks from",
    ),
    **{
        f"header of {kind}": (npz_with("evil", header(text)), "`evil` is damaged or not an array")
        for kind, text in HEADERS.items()
    },
    "header cut off": (npz_with("evil", b"\x93NUMPY\x01\x00\x09"), "is damaged or not an array"),
    "header of a gigabyte": (
        npz_with("evil", b"\x93NUMPY\x02\x00\x00\x00\x00\x40"), "`evil` is damaged or not an array"
    ),
    "twice": (npz_with("Wemb", array_bytes(np.ones(1))), "has `Wemb` twice"),
    "unknown": (npz_with("evil", array_bytes(np.ones(3, dtype=np.float32))), "evil: unknown"),
    "alias bomb": (decoder_of(BOMB), "has anchors or aliases"),
    "vocabulary bomb": (written("opus.vocab.yml", BOMB.encode()), "has anchors or aliases"),
    "deep YAML": (decoder_of("[" * 5000), "is nested deeper"),
    "large YAML": (
        written("opus.vocab.yml", b"#" * ((32 << 20) + 1)), "33554433 bytes, expected at most"
    ),
    "YAML of objects": (
        decoder_of("models: !!python/object/apply:os.system [true]\n"), "has the tag"
    ),
    "two documents": (decoder_of("--- {}\n--- {}\n"), "has 2 YAML documents"),
    "list for a table": (decoder_of("- a\n"), "is not a table of names"),
    "model elsewhere": (
        decoder_of("models: [../hf/model.npz]\n"), "names a file outside of itself"
    ),
    "model at the root": (decoder_of("models: [/etc/hostname]\n"), "names a file outside of"),
    "vocabulary elsewhere": (
        decoder_of("models: [model.npz]\nvocabs: [../a.yml, ../a.yml]\n"),
        "names a file outside of itself",
    ),
    "model is a link": (
        replaced("model.npz", lambda p: p.symlink_to("/etc/hostname")), "leads out of the directory"
    ),
    "vocabulary is a pipe": (replaced("opus.vocab.yml", os.mkfifo), "is not a regular file"),
    "no tokenizer": (lambda s: (s / "target.spm").unlink(), "target.spm: is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", MARIAN)
def test_damaged_marian_directory_is_refused(
    marian: Path, tmp_path: Path, run_tfm: RunTfm, name: str
) -> None:
    damage, message = MARIAN[name]
    source = copied(marian, tmp_path / "source")
    damage(source)

    refused(run_tfm, source, message)


def test_archive_without_options_is_refused(tmp_path: Path, run_tfm: RunTfm) -> None:
    source = tmp_path / "source"
    source.mkdir()
    np.savez(source / "model.npz", Wemb=np.ones((3, 2), dtype=np.float32))
    (source / "opus.vocab.yml").write_text("a: 0\n")

    refused(run_tfm, source, "has 0 bytes in `special:model.yml`, expected 1 to")
