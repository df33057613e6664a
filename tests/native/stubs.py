"""The engine's stub, `stub.c`, compiled and loaded."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

import tfm_cli.native
from tfm_cli.native.library import Library, declare

# Source pieces that ask for a fault
NO_MEMORY, NON_FINITE, ENDLESS, DEFECT, BAD = range(91, 96)


@functools.cache
def stub() -> Library:
    """The stub; where there is no C compiler the test is skipped."""
    if shutil.which("cc") is None:
        pytest.skip("runs where there is a C compiler, `cc`")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "libtfm_stub.so")
        header = Path(tfm_cli.native.__file__).parent
        subprocess.run(
            ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{header}",
             Path(__file__).with_name("stub.c"), "-o", path, "-lm"],
            check=True,
        )  # fmt: skip
        functions = declare(ctypes.CDLL(str(path)))
    for name in ("stub_note", "stub_noted"):
        getattr(functions, name).restype = ctypes.c_char_p
    functions.stub_options.restype = ctypes.POINTER(tfm_cli.native.library.ModelOptions)
    functions.stub_sum.restype = ctypes.c_double
    for name in ("stub_options", "stub_finished", "stub_banned"):
        getattr(functions, name).argtypes = [ctypes.c_void_p]
    functions.stub_sum.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    functions.stub_byte_value.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return Library(path, "stub", False, functions)
