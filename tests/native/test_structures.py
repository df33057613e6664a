"""What Python takes the C interface for is what `interface.h` has."""

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import tfm_cli.native
from tfm_cli.native import structures

HEADER = Path(tfm_cli.native.__file__).with_name("interface.h")
STRUCTURES = {
    "TfmModelOptions": structures.ModelOptions,
    "TfmSearchOptions": structures.SearchOptions,
    "TfmBatch": structures.Batch,
    "TfmResult": structures.Result,
}
CONSTANTS = {
    "TFM_ABI": structures.ABI,
    "TFM_OK": structures.OK,
    "TFM_BAD_ARGUMENT": structures.BAD_ARGUMENT,
    "TFM_NO_MEMORY": structures.NO_MEMORY,
    "TFM_NON_FINITE": structures.NON_FINITE,
    "TFM_STOPPED": structures.STOPPED,
    "TFM_DEFECT": structures.DEFECT,
    **{f"TFM_{name.upper()}": value for name, value in structures.PRECISIONS.items()},
    **{f"TFM_{name.upper()}_NORM": value for name, value in structures.NORMS.items()},
    **{f"TFM_{name.upper()}": value for name, value in structures.ACTIVATIONS.items()},
    **{f"TFM_{name.upper()}": value for name, value in structures.POSITIONS.items()},
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
    "const TfmModelOptions*": ctypes.POINTER(structures.ModelOptions),
    "const TfmSearchOptions*": ctypes.POINTER(structures.SearchOptions),
    "const TfmBatch*": ctypes.POINTER(structures.Batch),
    "TfmResult*": ctypes.POINTER(structures.Result),
}

BUFFERS = (ctypes.POINTER(ctypes.c_int8), ctypes.POINTER(ctypes.c_float))


def code() -> str:
    """The header without its comments."""
    return re.sub(r"//[^\n]*", "", HEADER.read_text(encoding="utf-8"))


def members(structure: type[ctypes.Structure]) -> list[str]:
    return [field[0] for field in structure._fields_]


@pytest.mark.skipif(shutil.which("cc") is None, reason="runs where there is a C compiler, `cc`")
def test_sizes_offsets_and_constants_are_those_of_the_header(tmp_path: Path) -> None:
    found: dict[str, int] = dict(CONSTANTS)
    for name, structure in STRUCTURES.items():
        found[f"sizeof({name})"] = ctypes.sizeof(structure)
        for member in members(structure):
            place = getattr(structure, member)
            found[f"offsetof({name}, {member})"] = place.offset
            found[f"sizeof((({name}*)0)->{member})"] = place.size
    lines = [
        f'printf("%s\\"{each}\\": %lld", n++ ? ", " : "", (long long)({each}));' for each in found
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

    told = subprocess.run([tmp_path / "program"], capture_output=True, check=True).stdout

    assert json.loads(told) == found


def test_structures_have_the_members_of_the_header() -> None:
    found = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", code(), re.DOTALL):
        body = re.sub(r"\((\*\w+)\)\(void\)", r"\1", body)
        found[name] = [
            member.split()[-1].lstrip("*")
            for line in body.split(";")
            for member in line.split(",")
            if member.strip()
        ]

    assert found == {name: members(structure) for name, structure in STRUCTURES.items()}


def test_functions_take_and_return_what_the_header_says() -> None:
    found = {}
    for result, name, arguments in re.findall(r"TFM_API ([\w* ]+?) ?(\w+)\(([^)]*)\);", code()):
        types = [] if arguments == "void" else [one.strip() for one in arguments.split(",")]
        types = [re.sub(r"\s*\w+$", "", one) for one in types]
        found[name] = (TYPES[result], tuple(map(TYPES.__getitem__, types)))
    # Memory of another's, by its address: ctypes takes the address of a buffer for it.
    for name in ("tfm_model_tensor", "tfm_model_bytes_tensor", "tfm_quantize"):
        result, arguments = found[name]
        found[name] = (
            result,
            tuple(ctypes.c_void_p if one in BUFFERS else one for one in arguments),
        )

    assert found == structures.FUNCTIONS
