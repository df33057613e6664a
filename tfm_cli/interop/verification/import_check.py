"""Whether an imported model computes what the original does, asked of the other side itself."""

import codecs
import dataclasses
import logging
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from tfm_cli.interop.marian.files import NpzFile
from tfm_cli.interop.marian.options import MODEL
from tfm_cli.interop.marian.reading import source_names
from tfm_cli.interop.verification import ctranslate2
from tfm_cli.interop.verification.comparison import compare, verify_hugging_face
from tfm_cli.interop.verification.probe import probe_lines
from tfm_cli.model_directory.weights import TrainedModel, build_transformer
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_SEED = 1
_MOST_PIECES = 200  # CTranslate2 makes positions for 2,048


def verify_import(model: TrainedModel, directory: Path, *, is_npz: bool, probe: Path | None) -> str:
    """How a model was checked against the one in a directory, in words for a person.

    A Hugging Face model is run by `transformers`. Only Marian itself runs an `.npz`, so that one
    is compared with what CTranslate2's reader makes of it. That gives every model the positions
    in halves, so the same weights are compared under those.

    Args:
        model: as it was read back.
        directory: what it was made from.
        is_npz: whether that is Marian's own format.
        probe: text in the source language; None to have some made up.

    Raises:
        ModelError: the two sides differ.
    """
    lines = probe_lines(model, probe, seed=_SEED)
    if is_npz:
        return _verify_npz(model, directory, lines)
    with tempfile.TemporaryDirectory(prefix="tfm-") as aside:
        found = verify_hugging_face(model, _without_marks(directory, Path(aside)), lines)
    if found is None:
        return "not verified: transformers is not installed, or cannot be used"
    logger.log(logging.WARNING if found.is_empty else logging.INFO, "%s", found)
    return str(found)


def _verify_npz(model: TrainedModel, directory: Path, lines: Sequence[str]) -> str:
    if not ctranslate2.is_installed():
        told = "not verified: ctranslate2 is not installed"
        logger.warning("%s", told)
        return told
    import yaml
    from ctranslate2.converters import MarianConverter

    names = source_names(directory)
    twin = _as_converted(model)
    with tempfile.TemporaryDirectory(prefix="tfm-") as aside:
        try:
            weights = _readable(directory / names.weights, Path(aside))
            home = _without_marks(directory, Path(aside), names.vocabularies)
            vocabularies = [str(home / name) for name in dict.fromkeys(names.vocabularies)]
            converter = MarianConverter(str(weights), vocabularies)
            converted = Path(converter.convert(f"{aside}/model"))
        except (KeyError, ValueError, RuntimeError, NotImplementedError, yaml.YAMLError) as error:
            told = f"not verified: CTranslate2 does not read it: {error}"
            logger.warning("%s", told)
            return told
        runtime = ctranslate2.CTranslate2Runtime(
            converted, twin.tokenizers, most_pieces=_MOST_PIECES
        )
        found = compare(twin, runtime, lines)
    told = str(found)
    if model.config.model.positions == "sinusoidal_marian":
        told += " (with the positions that it gives every model)"
    logger.log(logging.WARNING if found.is_empty else logging.INFO, "%s", told)
    return told


def _readable(path: Path, aside: Path) -> Path:
    """The archive, or a copy where CTranslate2 would stumble over it.

    Of the zeros that fill up the options, it takes away one; newer Marians write many. And it
    takes every number for one in the order of bytes of this machine.
    """
    with NpzFile(path) as stored:
        content = stored.content(MODEL)
        plain = content.rstrip(b"\0") + b"\0"
        if plain == content and stored.is_native:
            return path
        stored.copy_with(aside / "model.npz", MODEL, plain)
    return aside / "model.npz"


def _without_marks(directory: Path, aside: Path, names: Collection[str] = ()) -> Path:
    """The directory, or one of links where text that begins with a mark of UTF-8 has none.

    Others take such a mark for a part of the text.

    Args:
        directory: only regular files in it are looked at.
        aside: where the other one is made.
        names: of the text; by default, whatever is JSON.
    """
    files = [path for path in directory.iterdir() if path.is_file()]
    marked = []
    for path in files:
        if path.name in names or (not names and path.suffix == ".json"):
            with path.open("rb") as stream:
                if stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                    marked.append(path)
    if not marked:
        return directory
    home = aside / "text"
    home.mkdir()
    for path in files:
        if path in marked:
            (home / path.name).write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        else:
            (home / path.name).symlink_to(path.resolve())
    return home


def _as_converted(model: TrainedModel) -> TrainedModel:
    """The same weights as CTranslate2's reader has them: halves, and <unk> may be written."""
    shape = dataclasses.replace(model.config.model, positions="sinusoidal_halves")
    twin = build_transformer(shape, model.tokenizers.vocab_sizes)
    twin.load_state_dict(model.transformer.state_dict())
    sides = []
    for side in (model.tokenizers.source, model.tokenizers.target):
        assert side.vocabulary is not None, "every Marian model has one"
        vocabulary = dataclasses.replace(side.vocabulary, banned=(side.vocabulary.start,))
        sides.append(Tokenizer(side.model_bytes, vocabulary))
    config = dataclasses.replace(model.config, model=shape)
    return TrainedModel(config, TokenizerPair(sides[0], sides[1]), twin.eval())
