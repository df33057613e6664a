"""Logging to stderr: plain lines that a person and grep can read."""

import logging
import sys
from typing import TextIO

from tfm_cli.terminal import told

QUIET = logging.WARNING
NORMAL = logging.INFO
SILENT = logging.ERROR  # for what another process says as well


class _PlainFormatter(logging.Formatter):
    """Facts as they are; warnings and errors with their level in front."""

    def format(self, record: logging.LogRecord) -> str:
        text = told(super().format(record))
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is now, since tests and progress displays replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_PlainFormatter("%(message)s"))

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("this handler always writes to sys.stderr")


def setup(level: int = NORMAL) -> None:
    """Send the package's log lines from `level` upwards to stderr."""
    logger = logging.getLogger("tfm_cli")
    logger.handlers = [_StderrHandler()]
    logger.propagate = False
    logger.setLevel(level)


def counted(count: int, what: str, others: str = "") -> str:
    """A number of things as a person writes it: `1 pair`, `2 pairs`, `0 batches`."""
    return f"{count} {what}" if count == 1 else f"{count} {others or what + 's'}"


def seconds_text(seconds: float) -> str:
    """A duration as a person writes it: `42s`, `3m05s`, `2h10m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
