"""The shared library of the engine: selection for this processor, and loading.

Each instruction set has its own library, next to this file or, for an editable installation, in the
folder of the same name among the installed packages.
"""

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

import tfm_cli
from tfm_cli import native
from tfm_cli.errors import ResourceError
from tfm_cli.native.structures import ABI, declare

LIBRARY = "TFM_NATIVE_LIBRARY"  # a library, a folder of libraries, or NONE; for development
INSTRUCTION_SET = "TFM_INSTRUCTION_SET"  # selects one of the libraries
NONE = "none"
_BEST_FIRST = ("avx512_bf16", "avx512_vnni", "avx2", "neon")


class Library(NamedTuple):
    """The engine for one instruction set."""

    path: Path
    instruction_set: str
    has_bf16: bool  # the processor has instructions for products in bf16
    functions: ctypes.CDLL


def load() -> Library:
    """Return the best library for this processor, the same in every call.

    Raises:
        ResourceError: there is none, or it does not match the Python code.
    """
    found = _select(os.environ.get(LIBRARY, ""), os.environ.get(INSTRUCTION_SET, ""))
    if isinstance(found, str):
        raise ResourceError(f"the native CPU engine is not here: {found}", hint=_build_hint())
    return found


def why_absent() -> str:
    """Return the reason why there is no engine; an empty string if there is one.

    Raises:
        ResourceError: it does not match the Python code, or the named library does not exist.
    """
    found = _select(os.environ.get(LIBRARY, ""), os.environ.get(INSTRUCTION_SET, ""))
    return found if isinstance(found, str) else ""


def available() -> bool:
    """Return True if there is an engine for this processor; otherwise PyTorch is used.

    Raises:
        ResourceError: as for `why_absent`.
    """
    return not why_absent()


def description() -> str:
    """Return a description of the CPU engine, for `tfm --version`."""
    try:
        absent = why_absent()
    except ResourceError as error:
        return f"CPU engine: none: {error}" + (f"\n  {error.hint}" if error.hint else "")
    if absent:
        return f"CPU engine: PyTorch, since there is no native one: {absent}\n  {_build_hint()}"
    return f"CPU engine: native, {load().instruction_set}"


@functools.cache
def _select(path_or_folder: str, instruction_set: str) -> Library | str:
    """Return a library, or the reason why there is none."""
    if path_or_folder == NONE:
        return f"{LIBRARY} is `{NONE}`"
    paths = _libraries(Path(path_or_folder)) if path_or_folder else _installed()
    if not paths and path_or_folder:
        raise ResourceError(f"{path_or_folder}: no library of the engine, which {LIBRARY} wants")
    if not paths:
        return "it was not built when tfm was installed"
    unsupported = []
    for path in paths:
        library = _load(path)
        if instruction_set not in ("", library.instruction_set):
            continue
        if library.functions.tfm_runs_here():
            return library
        unsupported.append(library.instruction_set)
    if instruction_set:
        reason = "this processor lacks it" if unsupported else "there is no library for it"
        raise ResourceError(f"{INSTRUCTION_SET} is `{instruction_set}`: {reason}")
    return f"this processor has none of {', '.join(unsupported)}"


def _installed() -> list[Path]:
    """Return the libraries of the first folder of the package that contains any."""
    for folder in native.__path__:
        if paths := _libraries(Path(folder)):
            return paths
    return []


def _libraries(path_or_folder: Path) -> list[Path]:
    if not path_or_folder.is_dir():
        return [path_or_folder] if path_or_folder.is_file() else []
    order = {f"libtfm_{name}.so": rank for rank, name in enumerate(_BEST_FIRST)}
    paths = path_or_folder.glob("libtfm_*.so")
    return sorted(paths, key=lambda path: (order.get(path.name, len(order)), path.name))


def _load(path: Path) -> Library:
    try:
        functions = ctypes.CDLL(str(path.resolve()), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        reason = str(error).removeprefix(f"{path.resolve()}: ")
        raise ResourceError(f"{path}: cannot be loaded: {reason}", hint=_build_hint()) from error
    try:
        abi = functions.tfm_abi()
        if abi == ABI:
            declare(functions)
    except AttributeError as error:
        raise ResourceError(
            f"{path}: no library of the engine: {error}", hint=_build_hint()
        ) from error
    if abi != ABI:
        raise ResourceError(
            f"{path}: built for interface {abi}, this tfm has {ABI}", hint=_build_hint()
        )
    return Library(
        path, functions.tfm_instruction_set().decode(), bool(functions.tfm_has_bf16()), functions
    )


def _build_hint() -> str:
    """Return a hint with the command that builds the engine."""
    checkout = Path(tfm_cli.__file__).resolve().parent.parent
    what = "--force-reinstall tfm-cli"
    if (checkout / "pyproject.toml").is_file():
        what = f"--editable {checkout}"
    return f"build it with `TFM_REQUIRE_NATIVE=1 {sys.executable} -m pip install --no-deps {what}`"
