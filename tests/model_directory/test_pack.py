"""Packs: what is written, by Python's own reader, and what is refused of a stranger's archive."""

import gzip
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunTfm
from tests.model_directory.saved_models import save_random_model
from tfm_cli.config.settings import ModelConfig, TokenizerConfig
from tfm_cli.errors import ConfigError, DataError, ModelError, TfmError
from tfm_cli.model_directory import pack as packs
from tfm_cli.model_directory.card import read_card
from tfm_cli.model_directory.description import describe
from tfm_cli.model_directory.pack import CardOptions, pack, unpack
from tfm_cli.model_directory.weights import WeightsFacts

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = ModelConfig(encoder_layers=1, decoder_layers=1, width=8, heads=2, feed_forward_width=8)
CARD = CardOptions(source_languages=["en"], target_languages=["de", "no"], license="cc-by-4.0")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
    facts = WeightsFacts(7, {"bleu": 12.5})
    directory = tmp_path / "model"
    directory.mkdir()
    save_random_model(directory, SHAPE, settings, lines=["a b c"], facts=facts)
    return directory


@pytest.fixture
def files(model: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of a good pack."""
    pack(model, tmp_path / "good.tar", CardOptions())
    with tarfile.open(tmp_path / "good.tar") as archive:
        return {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]


def written(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], **options: Any) -> Path:
    """Write an archive by Python's own writer."""
    with tarfile.open(path, "w", **options) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return path


def entry(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_model_comes_back_as_it_was(suffix: str, model: Path, tmp_path: Path) -> None:
    archive, copy = tmp_path / f"model{suffix}", tmp_path / "copy"

    num_packed = pack(model, archive, CARD)
    num_unpacked = unpack(archive, copy)

    assert num_packed == num_unpacked == len(list(copy.iterdir())) == 4
    for path in model.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes()
    assert describe(copy).parameters == describe(model).parameters


def test_bytes_depend_on_nothing_but_the_model(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "other"
    shutil.copytree(model, other)
    for path in other.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)

    for suffix in (".tar", ".tar.gz"):
        pack(model, tmp_path / f"one{suffix}", CARD)
        pack(other, tmp_path / f"two{suffix}", CARD)
        contents = [(tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two")]
        assert contents[0] == contents[1]


def test_archive_is_plain(model: Path, tmp_path: Path) -> None:
    pack(model, tmp_path / "model.tar", CARD)

    with tarfile.open(tmp_path / "model.tar", "r:") as archive:
        members = archive.getmembers()
        assert archive.pax_headers == {}
    assert [each.name for each in members] == sorted(each.name for each in members)
    assert {(each.mtime, each.uid, each.gid, each.mode, each.type) for each in members} == {
        (0, 0, 0, 0o644, tarfile.REGTYPE)
    }
    assert {each.uname + each.gname for each in members} == {""}
    assert (tmp_path / "model.tar").stat().st_size % 10240 == 0
    assert all(each.pax_headers == {} for each in members)


def test_compressed_file_is_the_archive_without_name_and_time(model: Path, tmp_path: Path) -> None:
    pack(model, tmp_path / "model.tar", CARD)
    pack(model, tmp_path / "model.tar.gz", CARD)

    content = (tmp_path / "model.tar.gz").read_bytes()
    assert gzip.decompress(content) == (tmp_path / "model.tar").read_bytes()
    assert content[3:8] == bytes(5)  # no flags, so no name, and time 0


def test_only_what_translation_needs_is_packed(tiny_model: Path, tmp_path: Path) -> None:
    pack(tiny_model, tmp_path / "run.tar", CardOptions())

    with tarfile.open(tmp_path / "run.tar") as archive:
        names = archive.getnames()
    assert names == ["README.md", "config.json", "model.safetensors", "tokenizer.model"]


@pytest.mark.parametrize("version", [1, 2])
def test_older_models_are_packed(version: int, tmp_path: Path) -> None:
    model = GOLDEN / f"model_v{version}"

    pack(model, tmp_path / "model.tar", CARD)
    unpack(tmp_path / "model.tar", tmp_path / "copy")

    copy = {file.name: file.sha256 for file in describe(tmp_path / "copy").files}
    assert copy.items() >= {file.name: file.sha256 for file in describe(model).files}.items()


def test_unpacked_model_translates_as_before(
    tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    pack(tiny_model, tmp_path / "model.tar", CARD)
    unpack(tmp_path / "model.tar", tmp_path / "copy")

    command = ["translate", "--device", "cpu", "--with-score", "--model"]
    results = [
        run_tfm([*command, str(path)], "one two\n") for path in (tiny_model, tmp_path / "copy")
    ]

    assert results[0].out == results[1].out != ""


# The card.


def test_card_has_the_metadata_of_the_hub(tiny_model: Path, tmp_path: Path) -> None:
    pack(tiny_model, tmp_path / "model.tar", CARD)
    unpack(tmp_path / "model.tar", tmp_path / "copy")

    text = (tmp_path / "copy" / "README.md").read_text()
    assert text.startswith(
        '---\nlanguage:\n- en\n- de\n- "no"\nlicense: cc-by-4.0\nlibrary_name: tfm\n'
        "pipeline_tag: translation\n---\n\n# A translation model\n"
    )
    card = read_card(tmp_path / "copy" / "README.md")
    assert card is not None
    assert (card.languages, card.license) == (("en", "de", "no"), "cc-by-4.0")
    assert card.rows["trained"] == describe(tiny_model).card.rows["trained"]


def test_metadata_is_what_yaml_reads(tmp_path: Path, tiny_model: Path) -> None:
    yaml = pytest.importorskip("yaml")

    text = packs.packed_card(describe(tiny_model), CARD)

    assert yaml.safe_load(text.split("---\n")[1]) == {
        "language": ["en", "de", "no"],
        "license": "cc-by-4.0",
        "library_name": "tfm",
        "pipeline_tag": "translation",
    }


def test_card_has_no_path(tiny_model: Path) -> None:
    assert "training text | /" in (tiny_model / "README.md").read_text()

    text = packs.packed_card(describe(tiny_model), CARD)

    assert "| training text | train.en, train.de |\n" in text
    assert not re.search(r"(^|\s)/\w", text)


def test_card_of_another_origin_is_kept(model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")

    assert packs.packed_card(describe(model), CardOptions()) == "---\nlicense: mit\n---\nMine.\n"
    with pytest.raises(ConfigError, match=r"README.md: has metadata of its own"):
        packs.packed_card(describe(model), CARD)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (CardOptions(source_languages=["English"]), "`--source-language`: `English` is not a code"),
        (CardOptions(target_languages=["de\nx: y"]), "`--target-language`: `de\nx: y`"),
        (CardOptions(license="a: b"), "`--license`: `a: b` is not an identifier"),
    ],
)
def test_what_would_break_the_metadata_is_refused(
    card: CardOptions, message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        pack(model, tmp_path / "model.tar", card)

    assert str(caught.value).startswith(message)
    assert not (tmp_path / "model.tar").exists()


# Outputs.


def test_pack_is_replaced_and_a_foreign_file_is_kept(model: Path, tmp_path: Path) -> None:
    ours, foreign = tmp_path / "ours.tar", tmp_path / "foreign.tar"
    pack(model, ours, CardOptions())
    written(foreign, [entry("a.txt", b"mine")])
    before = foreign.read_bytes()

    pack(model, ours, CARD)
    with pytest.raises(ConfigError, match="exists, and is not a model that tfm packed"):
        pack(model, foreign, CARD)

    assert foreign.read_bytes() == before
    pack(model, foreign, CARD, overwrite=True)
    assert foreign.read_bytes() == ours.read_bytes()


def test_damaged_model_is_not_packed(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ModelError, match="the weights are not those that were saved"):
        pack(model, tmp_path / "model.tar", CARD)

    assert not (tmp_path / "model.tar").exists()


def test_model_without_weights_is_not_packed(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()

    with pytest.raises(ModelError, match=r"has no `model.safetensors`"):
        pack(model, tmp_path / "model.tar", CARD)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_existing_directory_is_never_written(kind: str, model: Path, tmp_path: Path) -> None:
    pack(model, tmp_path / "model.tar", CARD)
    other = tmp_path / "other"
    if kind == "folder":
        other.mkdir()
    elif kind == "file":
        other.write_text("mine")
    else:
        other.symlink_to("nowhere")

    with pytest.raises(ConfigError, match="other: exists"):
        unpack(tmp_path / "model.tar", other)


# Hostile archives.

Make = Callable[[dict[str, bytes], Path], Path]


def _with(*extra: tuple[tarfile.TarInfo, bytes], **options: Any) -> Make:
    """Return a function that writes a good archive with further entries."""

    def make(files: dict[str, bytes], path: Path) -> Path:
        return written(path, [*(entry(*file) for file in files.items()), *extra], **options)

    return make


def _changed(change: Callable[[bytes], bytes]) -> Make:
    def make(files: dict[str, bytes], path: Path) -> Path:
        content = _with()(files, path).read_bytes()
        path.write_bytes(change(content))
        return path

    return make


def _declared(num_bytes: int) -> Make:
    """Return a function that writes a header with a size that the content does not have."""

    def make(files: dict[str, bytes], path: Path) -> Path:
        info, _ = entry("README.md")
        info.size = num_bytes
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
        return path

    return make


def _in_another_order(files: dict[str, bytes], path: Path) -> Path:
    return written(path, [entry(*file) for file in reversed(files.items())])


def _without_config(files: dict[str, bytes], path: Path) -> Path:
    return written(path, [entry(*file) for file in files.items() if file[0] != "config.json"])


def _with_second_tokenizer(files: dict[str, bytes], path: Path) -> Path:
    more = sorted([*files.items(), ("source.model", files["tokenizer.model"])])
    return written(path, [entry(*file) for file in more])


def _with_too_large_weights(files: dict[str, bytes], path: Path) -> Path:
    larger = {**files, "model.safetensors": bytes(3 << 20)}
    return written(path, [entry(*file) for file in larger.items()])


def _bomb(files: dict[str, bytes], path: Path) -> Path:
    """A file of 300 kB that yields 300 MB for the card."""
    info, _ = entry("README.md")
    info.size = 300 << 20
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(info.tobuf())
        for _ in range(300):
            stream.write(bytes(1 << 20))
    return path


def _compressed(change: Callable[[bytes], bytes]) -> Make:
    def make(files: dict[str, bytes], path: Path) -> Path:
        path.write_bytes(change(gzip.compress(_with()(files, path).read_bytes())))
        return path

    return make


LINK: dict[str, Any] = {"linkname": "/etc/passwd"}
HOSTILE: dict[str, Make] = {
    "absolute path": _with(entry("/tmp/vocab.json", b"x")),
    "path above": _with(entry("../vocab.json", b"x")),
    "path inside": _with(entry("a/vocab.json", b"x")),
    "dot path": _with(entry("./vocab.json", b"x")),
    "other name": _with(entry("z.py", b"x")),
    "symbolic link": _with(entry("vocab.json", type=tarfile.SYMTYPE, **LINK)),
    "hard link": _with(entry("vocab.json", type=tarfile.LNKTYPE, **LINK)),
    "file with a link's target": _with(entry("vocab.json", b"x", **LINK)),
    "character device": _with(entry("vocab.json", type=tarfile.CHRTYPE)),
    "block device": _with(entry("vocab.json", type=tarfile.BLKTYPE)),
    "pipe": _with(entry("vocab.json", type=tarfile.FIFOTYPE)),
    "folder": _with(entry("vocab.json", type=tarfile.DIRTYPE)),
    "sparse file": _with(entry("vocab.json", type=tarfile.GNUTYPE_SPARSE)),
    "contiguous file": _with(entry("vocab.json", type=tarfile.CONTTYPE)),
    "unknown type": _with(entry("vocab.json", b"x", type=b"Z")),
    "twice": _with(entry("tokenizer.model", b"x")),
    "twice, apart": _with(entry("README.md", b"x")),
    "extended header with a path": _with(
        entry("vocab.json", b"x", pax_headers={"path": "../x"}), format=tarfile.PAX_FORMAT
    ),
    "extended header with a size": _with(
        entry("vocab.json", b"x", pax_headers={"size": "9"}), format=tarfile.PAX_FORMAT
    ),
    "global extended header": _with(format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}),
    "long name": _with(entry("a" * 300, b"x"), format=tarfile.GNU_FORMAT),
    "wrong order": _in_another_order,
    "no config": _without_config,
    "another tokenizer": _with_second_tokenizer,
    "too large weights": _with_too_large_weights,
    "size over the bound": _declared(2 << 20),
    "size of 16 EiB": _declared(1 << 64),
    "negative size": _declared(-1),
    "size beyond the end": _declared(100_000),
    "bomb": _bomb,
    "empty": _changed(lambda _: b""),
    "zeros": _changed(lambda _: bytes(10240)),
    "no archive": _changed(lambda _: b"hello" * 1000),
    "cut off in a header": _changed(lambda content: content[:300]),
    "cut off in a file": _changed(lambda content: content[:2000]),
    "without an end": _changed(lambda content: content.rstrip(b"\0")),
    "more at the end": _changed(lambda content: content + b"x"),
    "zeros at the end": _changed(lambda content: content + bytes(20480)),
    "wrong checksum": _changed(lambda content: content[:100] + b"1" + content[101:]),
    "compressed and cut off": _compressed(lambda content: content[:-20]),
    "compressed and changed": _compressed(
        lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:]
    ),
    "compressed, more at the end": _compressed(lambda content: content + b"x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_and_leaves_nothing(
    name: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    archive = HOSTILE[name](files, tmp_path / "hostile.tar")

    with pytest.raises((DataError, ModelError)) as caught:
        unpack(archive, place / "copy")

    assert caught.value.exit_code in (3, 4)
    assert "hostile.tar" in str(caught.value) or "copy" in str(caught.value)
    words = (
        "error -3",
        "compressed file",
        "bad checksum",
        "invalid header",
        "ascii",
        "expecting",
        "truncated",
    )
    assert not [word for word in words if word in str(caught.value).lower()]  # of Python
    assert list(place.iterdir()) == []


def test_good_archive_of_another_writer_is_read(files: dict[str, bytes], tmp_path: Path) -> None:
    """The tests above refuse what they add, not how Python writes."""
    archive = _with()(files, tmp_path / "plain.tar")

    assert unpack(archive, tmp_path / "copy") == 4


def test_changed_files_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in files.items():
        if name == "README.md":
            continue
        changed = {**files, name: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]}
        archive = written(tmp_path / "changed.tar", [entry(*file) for file in changed.items()])

        with pytest.raises(TfmError) as caught:
            unpack(archive, tmp_path / "copy")

        assert (caught.value.exit_code, (tmp_path / "copy").exists()) == (4, False)
        assert name in str(caught.value)


def test_every_cut_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    content = _with()(files, tmp_path / "good.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    end = sum(512 + -(-len(each) // 512) * 512 for each in files.values()) + 1024

    for size in [*range(0, 2048, 97), *range(2048, end, 512)]:
        cut.write_bytes(content[:size])
        with pytest.raises(DataError):
            unpack(cut, tmp_path / "copy")
