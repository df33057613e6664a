"""Finding the library that was built for the instructions of this processor, and loading it.

Each instruction set has a library of its own, beside this file or, where the package is installed
in place, in the folder of the same name among the installed packages.
"""

import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tfm_cli
from tfm_cli import native
from tfm_cli.errors import ResourceError
from tfm_cli.native.structures import ABI, declare

LIBRARY = "TFM_NATIVE_LIBRARY"  # a library, a folder of libraries, or NONE; for development
INSTRUCTION_SET = "TFM_INSTRUCTION_SET"  # which of the libraries to take
NONE = "none"
_BEST_FIRST = ("avx512_bf16", "avx512_vnni", "avx2", "neon")


@dataclass(frozen=True, slots=True)
class Library:
    """The engine, for one instruction set."""

    path: Path
    instruction_set: str
    has_bf16: bool  # products in bf16 have instructions of their own
    functions: ctypes.CDLL


def load() -> Library:
    """Return the best library for this processor, the same at every call.

    Raises:
        ResourceError: there is none, or it does not fit the Python code.
    """
    found = _chosen(os.environ.get(LIBRARY, ""), os.environ.get(INSTRUCTION_SET, ""))
    if isinstance(found, str):
        raise ResourceError(f"the native CPU engine is not here: {found}", hint=_rebuilt())
    return found


def why_absent() -> str:
    """Return why there is no engine, such as that it was not built; nothing if there is one.

    Raises:
        ResourceError: it does not fit the Python code, or the one that was named is not there.
    """
    found = _chosen(os.environ.get(LIBRARY, ""), os.environ.get(INSTRUCTION_SET, ""))
    return found if isinstance(found, str) else ""


def available() -> bool:
    """Return True if there is an engine for this processor; else PyTorch serves.

    Raises:
        ResourceError: as for `why_absent`.
    """
    return not why_absent()


def description() -> str:
    """Return what translates on a CPU, for `tfm --version`."""
    try:
        absent = why_absent()
    except ResourceError as error:
        return f"CPU engine: none: {error}" + (f"\n  {error.hint}" if error.hint else "")
    if absent:
        return f"CPU engine: PyTorch, since there is no native one: {absent}\n  {_rebuilt()}"
    return f"CPU engine: native, {load().instruction_set}"


@functools.cache
def _chosen(place: str, instruction_set: str) -> Library | str:
    """Return a library, or why there is none."""
    if place == NONE:
        return f"{LIBRARY} is `{NONE}`"
    paths = _libraries(Path(place)) if place else _installed()
    if not paths and place:
        raise ResourceError(f"{place}: no library of the engine, which {LIBRARY} wants")
    if not paths:
        return "it was not built when tfm was installed"
    lacking = []
    for path in paths:
        library = _loaded(path)
        if instruction_set not in ("", library.instruction_set):
            continue
        if library.functions.tfm_runs_here():
            return library
        lacking.append(library.instruction_set)
    if instruction_set:
        reason = "this processor lacks it" if lacking else "there is no library for it"
        raise ResourceError(f"{INSTRUCTION_SET} is `{instruction_set}`: {reason}")
    return f"this processor has none of {', '.join(lacking)}"


def _installed() -> list[Path]:
    """Return the libraries of the first folder of the package that has some."""
    for folder in native.__path__:
        if paths := _libraries(Path(folder)):
            return paths
    return []


def _libraries(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place] if place.is_file() else []
    order = {f"libtfm_{name}.so": rank for rank, name in enumerate(_BEST_FIRST)}
    paths = place.glob("libtfm_*.so")
    return sorted(paths, key=lambda path: (order.get(path.name, len(order)), path.name))


def _loaded(path: Path) -> Library:
    try:
        functions = ctypes.CDLL(str(path.resolve()), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        reason = str(error).removeprefix(f"{path.resolve()}: ")
        raise ResourceError(f"{path}: cannot be loaded: {reason}", hint=_rebuilt()) from error
    try:
        abi = functions.tfm_abi()
        if abi == ABI:
            declare(functions)
    except AttributeError as error:
        raise ResourceError(
            f"{path}: no library of the engine: {error}", hint=_rebuilt()
        ) from error
    if abi != ABI:
        raise ResourceError(
            f"{path}: built for interface {abi}, this tfm has {ABI}", hint=_rebuilt()
        )
    return Library(
        path, functions.tfm_instruction_set().decode(), bool(functions.tfm_has_bf16()), functions
    )


def _rebuilt() -> str:
    """Return how to build it again."""
    checkout = Path(tfm_cli.__file__).resolve().parent.parent
    what = "--force-reinstall tfm-cli"
    if (checkout / "pyproject.toml").is_file():
        what = f"--editable {checkout}"
    return f"build it with `TFM_REQUIRE_NATIVE=1 {sys.executable} -m pip install --no-deps {what}`"
