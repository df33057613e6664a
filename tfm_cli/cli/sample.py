"""`tfm sample`: the sample corpus as files."""

import logging
from pathlib import Path

from tfm_cli.cli.options import Command, Options, option, quiet_option, set_up_logging
from tfm_cli.corpus.sources import sample_path
from tfm_cli.errors import ConfigError
from tfm_cli.files import durable
from tfm_cli.files.atomic import atomic_file, check_writable
from tfm_cli.files.ownership import output_error

logger = logging.getLogger(__name__)

_SETS = ("train", "valid", "test", "combinations", "pronouns")
_NAMES = ("README.md", *(f"{name}.{side}" for name in _SETS for side in ("en", "fr")))
_OTHER = "name another directory"


class SampleOptions(Options):
    """The options of `tfm sample`."""

    directory: Path = option(
        "Files", metavar="DIR", default=..., help="Directory to write, made if it does not exist."
    )
    overwrite: bool = option(
        "Files", "--overwrite", default=False, help="Replace files of the same names."
    )
    quiet: bool = quiet_option()


def sample(options: SampleOptions) -> None:
    """Write the files of the sample corpus into a directory.

    It has generated English sentences with French translations for training, validation and test,
    in the public domain. `tfm train` without training text learns from the same files.

    Example:  tfm sample data
    """
    set_up_logging(options.quiet)
    contents = {name: Path(sample_path(name)).read_bytes() for name in _NAMES}
    directory = options.directory
    check_writable(directory, folder=True)
    others = [name for name in _NAMES if not _is_file_or_free(directory / name)]
    if others:
        raise ConfigError(f"{directory / others[0]}: is not a regular file", hint=_OTHER)
    changed = [name for name, content in contents.items() if _differs(directory / name, content)]
    if changed and not options.overwrite:
        raise ConfigError(
            f"{directory / changed[0]}: exists and differs from the sample corpus",
            hint=f"{_OTHER}, or replace files by `--overwrite`",
        )
    try:
        durable.make_directory(directory)
    except OSError as error:
        raise output_error(directory, error) from error
    for name, content in contents.items():
        if name in changed or not (directory / name).exists():
            with atomic_file(directory / name, follow=False) as stream:
                stream.write(content)
    logger.info("wrote %d files to %s; %s says what they are", len(contents), directory, _NAMES[0])


def _is_file_or_free(path: Path) -> bool:
    """Return True for a regular file, and if nothing has the path; False for a link."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def _differs(path: Path, content: bytes) -> bool:
    """Return True if a file with other content has the path."""
    return path.exists() and path.read_bytes() != content


COMMAND = Command(sample, SampleOptions, {"Files": (), "Messages": ()})
