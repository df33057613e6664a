"""The library that fits the processor is found, and declared as `interface.h` has it."""

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tfm_cli.native
from tests.conftest import RunTfm
from tfm_cli import native
from tfm_cli.errors import ResourceError
from tfm_cli.native import library
from tfm_cli.native.library import (
    ABI,
    ACTIVATIONS,
    BAD_ARGUMENT,
    DEFECT,
    FUNCTIONS,
    NO_MEMORY,
    NON_FINITE,
    NORMS,
    OK,
    POSITIONS,
    PRECISIONS,
    STOPPED,
    Batch,
    ModelOptions,
    Result,
    SearchOptions,
)

NATIVE = Path(library.__file__).parent


def answer(value: object) -> Any:
    def function() -> object:
        return value

    return function


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package that holds no library but what a test puts there, and does so unknown to others."""
    monkeypatch.delenv(library.LIBRARY, raising=False)
    monkeypatch.delenv(library.INSTRUCTION_SET, raising=False)
    monkeypatch.setattr(native, "__path__", [str(tmp_path / "nothing"), str(tmp_path)])
    monkeypatch.setattr(library, "_select", library._select.__wrapped__)
    return tmp_path


class Built:
    """Libraries as ctypes would load them: what each of their functions returns."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.loaded: list[str] = []
        self.known: dict[str, SimpleNamespace] = {}
        monkeypatch.setattr(ctypes, "CDLL", self._load)

    def add(self, name: str, *, runs: bool = True, abi: int = ABI, lacks: str = "") -> Path:
        functions = {each: answer(None) for each in FUNCTIONS}
        functions["tfm_abi"] = answer(abi)
        functions["tfm_runs_here"] = answer(int(runs))
        functions["tfm_instruction_set"] = answer(name.encode())
        functions["tfm_has_bf16"] = answer(int(name == "avx512_bf16"))
        functions.pop(lacks, None)
        path = self.folder / f"libtfm_{name}.so"
        path.touch()
        self.known[path.name] = SimpleNamespace(**functions)
        return path

    def _load(self, path: str, *, mode: int) -> SimpleNamespace:
        assert mode == ctypes.RTLD_LOCAL
        name = Path(path).name
        if name not in self.known:
            raise OSError(f"{path}: file too short")
        self.loaded.append(name)
        return self.known[name]


@pytest.fixture
def built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    return Built(folder, monkeypatch)


def test_number_of_the_interface_is_that_of_the_header() -> None:
    header = (NATIVE / "interface.h").read_text(encoding="utf-8")

    assert re.findall(r"^#define TFM_ABI (\d+)$", header, flags=re.MULTILINE) == [str(ABI)]


def test_best_library_is_taken_and_no_other_loaded(built: Built) -> None:
    for name in ("avx2", "avx512_bf16", "avx512_vnni"):
        built.add(name)

    result = library.load()

    assert (result.instruction_set, result.has_bf16) == ("avx512_bf16", True)
    assert built.loaded == ["libtfm_avx512_bf16.so"]
    assert library.description() == "CPU engine: native, avx512_bf16"


def test_library_that_the_processor_cannot_run_is_passed_over(built: Built) -> None:
    built.add("avx512_bf16", runs=False)
    built.add("avx512_vnni", runs=False)
    built.add("avx2")

    assert library.load().instruction_set == "avx2"


def test_none_that_runs_here_is_told(built: Built) -> None:
    built.add("avx2", runs=False)
    built.add("avx512_vnni", runs=False)

    assert not library.available()
    assert library.why_absent() == "this processor has none of avx512_vnni, avx2"
    with pytest.raises(ResourceError, match="engine is unavailable: this processor has none of"):
        library.load()


def test_none_that_was_built_is_told_with_the_line_that_builds_it() -> None:
    assert library.why_absent() == "it was not built when tfm was installed"
    assert "PyTorch, since there is no native one: it was not" in library.description()
    assert "`TFM_REQUIRE_NATIVE=1 " in library.description()
    with pytest.raises(ResourceError, match="was not built") as caught:
        library.load()
    assert caught.value.hint is not None
    assert "pip install --no-deps --editable" in caught.value.hint


def test_stale_library_is_refused_with_the_line_that_builds_it(built: Built) -> None:
    path = built.add("avx512_bf16", abi=ABI - 1)
    built.add("avx2")

    for look in (library.load, library.available, library.why_absent):
        with pytest.raises(ResourceError) as caught:
            look()
        assert str(caught.value) == f"{path}: built for interface {ABI - 1}, this tfm has {ABI}"
        assert "pip install --no-deps --editable" in (caught.value.hint or "")
    assert f"built for interface {ABI - 1}" in library.description()


def test_library_of_something_else_is_refused(built: Built) -> None:
    built.add("avx2", lacks="tfm_search")
    with pytest.raises(ResourceError, match=r"libtfm_avx2\.so: no library of the engine: .*search"):
        library.load()

    built.add("avx2", lacks="tfm_abi")
    with pytest.raises(ResourceError, match=r"libtfm_avx2\.so: no library of the engine: .*abi"):
        library.load()


def test_library_that_cannot_be_loaded_is_told(folder: Path) -> None:
    (folder / "libtfm_avx2.so").write_bytes(b"\x7fELF")

    with pytest.raises(ResourceError, match=r"libtfm_avx2\.so: cannot be loaded: file too short"):
        library.available()


def test_instruction_set_can_be_chosen(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    built.add("avx512_bf16")
    built.add("avx512_vnni", runs=False)
    built.add("avx2")

    monkeypatch.setenv(library.INSTRUCTION_SET, "avx2")
    assert library.load().instruction_set == "avx2"

    monkeypatch.setenv(library.INSTRUCTION_SET, "avx512_vnni")
    with pytest.raises(ResourceError, match="`avx512_vnni`: this processor lacks it"):
        library.available()

    monkeypatch.setenv(library.INSTRUCTION_SET, "neon")
    with pytest.raises(ResourceError, match="`neon`: there is no library for it"):
        library.available()


def test_library_or_folder_can_be_named(
    built: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built.add("avx512_bf16")
    built.add("avx2")
    built.known["own.so"] = built.known["libtfm_avx2.so"]
    own = tmp_path / "own.so"
    own.touch()

    monkeypatch.setenv(library.LIBRARY, str(own))
    assert library.load().path == own

    monkeypatch.setenv(library.LIBRARY, str(tmp_path))
    assert library.load().instruction_set == "avx512_bf16"

    monkeypatch.setenv(library.LIBRARY, str(tmp_path / "elsewhere"))
    with pytest.raises(
        ResourceError, match=r"TFM_NATIVE_LIBRARY is `.*elsewhere`: there is no library"
    ):
        library.available()


def test_engine_can_be_turned_off(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    built.add("avx2")
    monkeypatch.setenv(library.LIBRARY, library.NONE)

    assert not library.available()
    assert library.why_absent() == "TFM_NATIVE_LIBRARY is `none`"


def test_version_tells_the_engine(
    built: Built, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.add("avx2")
    assert run_tfm(["--version"]).out.split("\n")[1] == "CPU engine: native, avx2"

    built.add("avx2", abi=ABI + 1)
    result = run_tfm(["--version"])
    assert result.code == 0
    assert f"\nCPU engine: none: {built.folder}/libtfm_avx2.so: built for" in result.out
    assert "\n  build it with `TFM_REQUIRE_NATIVE=1 " in result.out

    monkeypatch.setenv(library.LIBRARY, library.NONE)
    assert "\nCPU engine: PyTorch, since there is no native one" in run_tfm(["--version"]).out


def test_stale_library_ends_a_translation(built: Built, run_tfm: RunTfm, tiny_model: Path) -> None:
    built.add("avx2", abi=ABI + 1)

    result = run_tfm(["translate", "--model", str(tiny_model), "--device", "cpu"], "one two\n")

    assert (result.code, result.out) == (5, "")
    assert f"libtfm_avx2.so: built for interface {ABI + 1}" in result.err
    assert "hint: build it with `TFM_REQUIRE_NATIVE=1 " in result.err


HEADER = Path(tfm_cli.native.__file__).with_name("interface.h")
STRUCTURES = {
    "TfmModelOptions": ModelOptions,
    "TfmSearchOptions": SearchOptions,
    "TfmBatch": Batch,
    "TfmResult": Result,
}
CONSTANTS = {
    "TFM_ABI": ABI,
    "TFM_OK": OK,
    "TFM_BAD_ARGUMENT": BAD_ARGUMENT,
    "TFM_NO_MEMORY": NO_MEMORY,
    "TFM_NON_FINITE": NON_FINITE,
    "TFM_STOPPED": STOPPED,
    "TFM_DEFECT": DEFECT,
    **{f"TFM_{name.upper()}": value for name, value in PRECISIONS.items()},
    **{f"TFM_{name.upper()}_NORM": value for name, value in NORMS.items()},
    **{f"TFM_{name.upper()}": value for name, value in ACTIVATIONS.items()},
    **{f"TFM_{name.upper()}": value for name, value in POSITIONS.items()},
}
# In C and in ctypes
TYPES = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
    "const char*": ctypes.c_char_p,
    "void": None,
    "const int32_t*": ctypes.POINTER(ctypes.c_int32),
    "const int16_t*": ctypes.POINTER(ctypes.c_int16),
    "const uint64_t*": ctypes.POINTER(ctypes.c_uint64),
    "const double*": ctypes.POINTER(ctypes.c_double),
    "int8_t*": ctypes.POINTER(ctypes.c_int8),
    "const int8_t*": ctypes.POINTER(ctypes.c_int8),
    "float*": ctypes.POINTER(ctypes.c_float),
    "const float*": ctypes.POINTER(ctypes.c_float),
    "TfmModel*": ctypes.c_void_p,
    "const TfmModel*": ctypes.c_void_p,
    "TfmModel**": ctypes.POINTER(ctypes.c_void_p),
    "const TfmModel* const*": ctypes.POINTER(ctypes.c_void_p),
    "TfmWorkspace*": ctypes.c_void_p,
    "const TfmWorkspace*": ctypes.c_void_p,
    "TfmWorkspace**": ctypes.POINTER(ctypes.c_void_p),
    "const TfmModelOptions*": ctypes.POINTER(ModelOptions),
    "const TfmSearchOptions*": ctypes.POINTER(SearchOptions),
    "const TfmBatch*": ctypes.POINTER(Batch),
    "TfmResult*": ctypes.POINTER(Result),
}

BUFFERS = (ctypes.POINTER(ctypes.c_int8), ctypes.POINTER(ctypes.c_float))


def code() -> str:
    """The header without its comments."""
    return re.sub(r"//[^\n]*", "", HEADER.read_text(encoding="utf-8"))


def members(structure: type[ctypes.Structure]) -> list[str]:
    return [field[0] for field in structure._fields_]


@pytest.mark.skipif(shutil.which("cc") is None, reason="runs where there is a C compiler, `cc`")
def test_sizes_offsets_and_constants_are_those_of_the_header(tmp_path: Path) -> None:
    result: dict[str, int] = dict(CONSTANTS)
    for name, structure in STRUCTURES.items():
        result[f"sizeof({name})"] = ctypes.sizeof(structure)
        for member in members(structure):
            place = getattr(structure, member)
            result[f"offsetof({name}, {member})"] = place.offset
            result[f"sizeof((({name}*)0)->{member})"] = place.size
    lines = [
        f'printf("%s\\"{each}\\": %lld", n++ ? ", " : "", (long long)({each}));' for each in result
    ]
    program = tmp_path / "program.c"
    program.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
        + "int main(void) { int n = 0; putchar('{');\n"
        + "\n".join(lines)
        + "\nputchar('}'); return 0; }\n",
        encoding="utf-8",
    )
    subprocess.run(["cc", "-std=c11", program, "-o", tmp_path / "program"], check=True)

    output = subprocess.run([tmp_path / "program"], capture_output=True, check=True).stdout

    assert json.loads(output) == result


def test_structures_have_the_members_of_the_header() -> None:
    result = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", code(), re.DOTALL):
        body = re.sub(r"\((\*\w+)\)\(void\)", r"\1", body)
        result[name] = [
            member.split()[-1].lstrip("*")
            for line in body.split(";")
            for member in line.split(",")
            if member.strip()
        ]

    assert result == {name: members(structure) for name, structure in STRUCTURES.items()}


def test_functions_take_and_return_what_the_header_says() -> None:
    actual = {}
    for result, name, arguments in re.findall(r"TFM_API ([\w* ]+?) ?(\w+)\(([^)]*)\);", code()):
        types = [] if arguments == "void" else [one.strip() for one in arguments.split(",")]
        types = [re.sub(r"\s*\w+$", "", one) for one in types]
        actual[name] = (TYPES[result], tuple(map(TYPES.__getitem__, types)))
    # Memory of another's, by its address: ctypes takes the address of a buffer for it.
    for name in ("tfm_model_tensor", "tfm_model_int8_tensor", "tfm_quantize"):
        result, arguments = actual[name]
        actual[name] = (
            result,
            tuple(ctypes.c_void_p if one in BUFFERS else one for one in arguments),
        )

    assert actual == FUNCTIONS
