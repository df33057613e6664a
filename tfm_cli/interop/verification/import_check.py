"""Verification of an imported model against the original, which another program runs."""

import codecs
import dataclasses
import logging
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from tfm_cli.interop.marian.files import NpzFile
from tfm_cli.interop.marian.options import MODEL
from tfm_cli.interop.marian.reading import source_names
from tfm_cli.interop.verification.comparison import compare, verify_hugging_face
from tfm_cli.interop.verification.probe import probe_lines
from tfm_cli.interop.verification.runtimes import CTranslate2Runtime, is_installed
from tfm_cli.model_directory.weights import TrainedModel, build_transformer
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_SEED = 1
_MAX_TOKENS = 200  # CTranslate2 has positions for 2,048


def verify_import(model: TrainedModel, directory: Path, *, is_npz: bool, probe: Path | None) -> str:
    """Compare a model with its original, and return the result in words.

    A Hugging Face model is run by `transformers`. Only Marian itself runs an `.npz`, which is
    therefore compared with its conversion by CTranslate2. That conversion always has positions in
    halves, so our weights are compared under those.

    Args:
        model: the imported model, read back.
        directory: the original.
        is_npz: True for Marian's own format.
        probe: text in the source language; by default it is generated.

    Raises:
        ModelError: the two models differ.
    """
    lines = probe_lines(model, probe, seed=_SEED)
    if is_npz:
        return _verify_npz(model, directory, lines)
    with tempfile.TemporaryDirectory(prefix="tfm-") as temporary:
        result = verify_hugging_face(model, _without_bom(directory, Path(temporary)), lines)
    if result is None:
        return "not verified: transformers is not installed, or cannot be used"
    logger.log(logging.WARNING if result.is_empty else logging.INFO, "%s", result)
    return str(result)


def _verify_npz(model: TrainedModel, directory: Path, lines: Sequence[str]) -> str:
    if not is_installed("ctranslate2"):
        message = "not verified: ctranslate2 is not installed"
        logger.warning("%s", message)
        return message
    import yaml
    from ctranslate2.converters import MarianConverter

    names = source_names(directory)
    twin = _as_converted(model)
    with tempfile.TemporaryDirectory(prefix="tfm-") as temporary:
        try:
            weights = _readable_weights(directory / names.weights, Path(temporary))
            home = _without_bom(directory, Path(temporary), names.vocabularies)
            vocabularies = [str(home / name) for name in dict.fromkeys(names.vocabularies)]
            converter = MarianConverter(str(weights), vocabularies)
            converted = Path(converter.convert(f"{temporary}/model"))
        except (KeyError, ValueError, RuntimeError, NotImplementedError, yaml.YAMLError) as error:
            message = f"not verified: CTranslate2 cannot read it: {error}"
            logger.warning("%s", message)
            return message
        runtime = CTranslate2Runtime(converted, twin.tokenizers, max_tokens=_MAX_TOKENS)
        result = compare(twin, runtime, lines)
    message = str(result)
    if model.config.model.positions == "sinusoidal_marian":
        message += " (with CTranslate2's positions)"
    logger.log(logging.WARNING if result.is_empty else logging.INFO, "%s", message)
    return message


def _readable_weights(path: Path, temporary: Path) -> Path:
    """Return the path of an archive, or of a copy that CTranslate2 can read.

    CTranslate2 strips only one of the zeros that pad the options, of which newer versions of
    Marian write many, and it assumes that numbers have the byte order of this machine.
    """
    with NpzFile(path) as stored:
        content = stored.content(MODEL)
        plain = content.rstrip(b"\0") + b"\0"
        if plain == content and stored.is_native:
            return path
        stored.copy_with(temporary / "model.npz", MODEL, plain)
    return temporary / "model.npz"


def _without_bom(directory: Path, temporary: Path, names: Collection[str] = ()) -> Path:
    """Return a directory whose text files lack byte order marks, which others read as text.

    It is the directory itself, or a new one with links to its files and copies without the mark.

    Args:
        directory: only its regular files are considered.
        temporary: parent of a new directory.
        names: of the text files; by default all JSON files.
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
    home = temporary / "text"
    home.mkdir()
    for path in files:
        if path in marked:
            (home / path.name).write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        else:
            (home / path.name).symlink_to(path.resolve())
    return home


def _as_converted(model: TrainedModel) -> TrainedModel:
    """Return the model as CTranslate2 converts it: positions in halves, and <unk> not banned."""
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
