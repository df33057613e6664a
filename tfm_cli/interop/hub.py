"""Models from the Hugging Face Hub, by the name they have there."""

import re
from pathlib import Path
from typing import Any

from tfm_cli.errors import DataError, ResourceError

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_NAME = re.compile(f"{_PART}/{_PART}", re.ASCII)
_FILES = ("config.json", "generation_config.json", "model.safetensors", "source.spm", "target.spm",
          "vocab.json", "target_vocab.json", "tokenizer_config.json", "special_tokens_map.json",
          "added_tokens.json")  # fmt: skip
_PICKLE = "pytorch_model.bin"


def is_hub_name(source: str) -> bool:
    """Whether a name looks like `Helsinki-NLP/opus-mt-en-de`; the Hub's own rules for names."""
    if any(mark in source for mark in ("--", "..")) or source.endswith(".git"):
        return False
    return _NAME.fullmatch(source) is not None


def download(name: str, *, allow_pickle: bool) -> Path:
    """The directory of a downloaded model; only the files that an import reads are fetched.

    Args:
        name: such as `Helsinki-NLP/opus-mt-en-de`.
        allow_pickle: fetch `pytorch_model.bin` as well.

    Raises:
        ResourceError: `huggingface_hub` is not installed, or the Hub cannot be reached, or what
            answers is not the Hub.
        DataError: it is no name, there is no such model, or it may not be read.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise ResourceError(
            f"{name}: cannot be downloaded: huggingface_hub is needed for it",
            hint="pip install 'tfm-cli[hf]', or name a directory",
        ) from error
    patterns = [*_FILES, _PICKLE] if allow_pickle else list(_FILES)
    client_error: Any = HfHubHTTPError.__mro__[1]  # of the library that it makes its requests with
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ResourceError(
            f"{name}: cannot be downloaded: the Hub cannot be reached, and nothing of it is cached",
            hint="check the network, or name a directory",
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise DataError(f"{name}: cannot be downloaded: {_first_line(error)}") from error
    except (OSError, client_error) as error:
        raise ResourceError(f"{name}: cannot be downloaded: {_first_line(error)}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # HTML, or other JSON
        raise ResourceError(
            f"{name}: cannot be downloaded: what answered in the Hub's place is not the Hub: "
            f"{_first_line(error)}",
            hint="check the network, such as for a page that wants a log-in, or name a directory",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
