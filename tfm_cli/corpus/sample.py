"""The sample corpus that comes with the package: generated English and French sentences."""

from pathlib import Path

from tfm_cli.errors import ResourceError

_PACKAGE = Path(__file__).resolve().parent.parent


def sample_path(name: str) -> str:
    """Where a file of the sample corpus is, such as `train.en`.

    Raises:
        ResourceError: it was not installed with the package.
    """
    # Inside an installed package, or beside it in a checkout.
    for directory in (_PACKAGE / "data", _PACKAGE.parent / "data"):
        if (directory / name).is_file():
            return str(directory / name)
    raise ResourceError(
        f"the sample corpus (`{name}`) is not installed", hint="reinstall the package `tfm-cli`"
    )
