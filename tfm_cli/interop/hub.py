"""Models from the Hugging Face Hub, by the name they have there."""

import re
from pathlib import Path

from tfm_cli.errors import DataError, ResourceError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_FILES = ("config.json", "generation_config.json", "model.safetensors", "source.spm", "target.spm",
          "vocab.json", "target_vocab.json", "tokenizer_config.json", "special_tokens_map.json",
          "added_tokens.json")  # fmt: skip
_PICKLE = "pytorch_model.bin"


def is_hub_name(source: str) -> bool:
    """Whether a name looks like `Helsinki-NLP/opus-mt-en-de`."""
    return _NAME.fullmatch(source) is not None


def download(name: str, *, allow_pickle: bool) -> Path:
    """The directory of a downloaded model; only the files that an import reads are fetched.

    Args:
        name: such as `Helsinki-NLP/opus-mt-en-de`.
        allow_pickle: fetch `pytorch_model.bin` as well.

    Raises:
        ResourceError: `huggingface_hub` is not installed, or the Hub cannot be reached.
        DataError: there is no such model, or it may not be read.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ResourceError(
            f"{name}: huggingface_hub is needed to download it",
            hint="pip install 'tfm-cli[hf]', or name a directory",
        ) from error
    patterns = [*_FILES, _PICKLE] if allow_pickle else list(_FILES)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ResourceError(
            f"{name}: cannot be downloaded: the Hub cannot be reached, and nothing of it is cached",
            hint="check the network, or name a directory",
        ) from error
    except HfHubHTTPError as error:
        told = str(error).strip().split("\n", maxsplit=1)[0]
        raise DataError(f"{name}: cannot be downloaded: {told}") from error
    except OSError as error:
        raise ResourceError(f"{name}: cannot be downloaded: {error}") from error
