"""Products, attention and memory of the engine against plain loops, for each instruction set."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import tfm_cli.native

HEADERS = Path(tfm_cli.native.__file__).parent
OPTIONS = [
    "-std=c++17",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
]


def run_kernels(folder: Path, *options: str) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("runs where there is a C++ compiler, `c++`")
    program = folder / "kernels"
    source = Path(__file__).with_name("kernels.cpp")
    subprocess.run(
        [compiler, *OPTIONS, *options, f"-I{HEADERS}", source, "-o", program], check=True
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("as it should be\n", "", 0)


def processor_has(*flags: str) -> bool:
    known = Path("/proc/cpuinfo")
    return known.exists() and set(flags) <= set(known.read_text().split())


@pytest.mark.slow  # compiles for seconds
def test_kernels_agree_with_loops_on_this_processor(tmp_path: Path) -> None:
    run_kernels(tmp_path, "-O2", "-march=native")


@pytest.mark.slow
@pytest.mark.skipif(not processor_has("avx2", "fma"), reason="runs on processors with AVX2")
def test_kernels_agree_with_loops_with_avx2(tmp_path: Path) -> None:
    run_kernels(tmp_path, "-O2", "-march=x86-64-v3")


@pytest.mark.torture
@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs on x86-64")
def test_kernels_agree_with_loops_without_wide_vectors(tmp_path: Path) -> None:
    run_kernels(tmp_path, "-O2", "-march=x86-64")


@pytest.mark.torture
def test_kernels_stay_inside_their_memory(tmp_path: Path) -> None:
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    run_kernels(tmp_path, "-O1", "-march=native", *sanitizers)
