"""JSON files that tfm keeps for itself: read as warily as those of a stranger.

Anybody who can write to a folder can change them, and a shared cache has many who can.
"""

import logging
from pathlib import Path
from typing import Any

from tfm_cli.plain_file import read_private
from tfm_cli.plain_json import parse_object

logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 20


def read_private_json(
    path: Path, *, otherwise: str = "it is treated as absent", max_bytes: int = MAX_BYTES
) -> dict[str, Any] | None:
    """Return the object in a private file, or None, with a warning unless there is no file.

    Nothing but a regular file with one name is opened, and no link is followed.

    Args:
        path: of the file.
        otherwise: what follows if the file cannot be used, for the warning.
        max_bytes: larger files are not read.
    """
    try:
        return parse_object(read_private(path, max_bytes=max_bytes))
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        reason = f"is damaged: {error}"
    logger.warning("%s: %s; %s", path, reason, otherwise)
    return None
