"""tfm: neural machine translation from the command line, and from Python.

The names in `__all__` are public; everything else may change with any version.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfm_cli.api import (
        Candidate,
        MetricOptions,
        Score,
        TfmError,
        TrainingResult,
        Translation,
        Translator,
        evaluate,
        train,
    )

__version__ = "0.1.0"

__all__ = [
    "Candidate", "MetricOptions", "Score", "TfmError", "TrainingResult", "Translation",
    "Translator", "evaluate", "train", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Return a public name; it is imported when it is first used, so that `tfm` starts quickly."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tfm_cli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
