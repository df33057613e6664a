"""What is built of this package: with the engine, without a compiler, in place, and as source."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import tfm_cli
from tests import environments

pytestmark = [
    pytest.mark.torture,  # `make install` builds the engine in place
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("scikit_build_core") is None or not shutil.which("cmake"),
        reason="needs scikit-build-core and CMake",
    ),
]
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"cmake.build-type": "Debug"}  # a minute less for each instruction set
# One instruction set is enough here, and every processor of its kind that is in use has it.
ONE_LIBRARY = (
    {"CMAKE_ARGS": "-DTFM_INSTRUCTION_SETS=avx2"} if os.uname().machine == "x86_64" else {}
)


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH that has all for a build but a compiler."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("cmake", "ninja", "make", "sh", "uname", "cat", "ls"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what the package is built of."""
    folder = tmp_path / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("tfm_cli", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(
    what: str, source: Path, **environment: str
) -> tuple["subprocess.CompletedProcess[str]", Path]:
    """Build a `wheel`, an `editable` or an `sdist` as pip does, without fetching anything."""
    code = (
        "import sys, scikit_build_core.build as backend\n"
        f"backend.build_{what}({str(source.parent / what)!r}, {SETTINGS!r})\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "TFM_REQUIRE_NATIVE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env=kept | ONE_LIBRARY | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    built = sorted((source.parent / what).glob("*")) if done.returncode == 0 else []
    return done, built[0] if built else Path("none")


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def wanted_files() -> set[str]:
    """What each wheel has: modules, what the pictures are made of, and the sample corpus."""
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tfm_cli").rglob("*.*")
        if path.suffix in (".py", ".css", ".js", ".html")
    }
    text = {f"tfm_cli/data/{path.name}" for path in (ROOT / "data").glob("*.[ef][nr]")}
    assert len(text) == 10
    others = {"py.typed", "data/README.md", "data/pronouns.antecedents"}
    return modules | text | {f"tfm_cli/{name}" for name in others}


def version_of(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("/METADATA")]
        metadata = archive.read(name).decode()
    (found,) = re.findall(r"^Version: (.*)$", metadata, flags=re.MULTILINE)
    return str(found)


def run(python: Path, *arguments: str, path: str, stdin: str = "") -> str:
    """Run the command that an environment has, with no other variables than these."""
    done = subprocess.run(
        [python.parent / "tfm", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=python.parent,
        env={"PATH": path, "HOME": str(python.parent)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_has_the_engine_and_runs_without_a_compiler_or_torch(
    source: Path, tmp_path: Path, without_compiler: str, tiny_model: Path
) -> None:
    done, wheel = build("wheel", source, TFM_REQUIRE_NATIVE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    more = {name for name in contents(wheel) - wanted_files() if ".dist-info/" not in name}
    python = environments.environment(tmp_path / "environment")
    environments.install(python, str(wheel))

    version = run(python, "--version", path=without_compiler).split("\n")
    translated = run(
        python, "translate", "--model", str(tiny_model), path=without_compiler, stdin="one two\n"
    )
    sample = subprocess.run(
        [python, "-c", "from tfm_cli.corpus.sources import *; print(sample_path('train.en'))"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    assert re.fullmatch(rf"tfm_cli-{tfm_cli.__version__}-py3-none-\w+\.whl", wheel.name)
    assert not wheel.name.endswith("-any.whl")
    assert {re.sub(r"libtfm_\w+", "libtfm_X", name) for name in more} == {
        "tfm_cli/native/libtfm_X.so"
    }
    assert contents(wheel) >= wanted_files()
    assert version_of(wheel) == tfm_cli.__version__
    assert version[0] == f"tfm {tfm_cli.__version__}"
    assert version[1].startswith("CPU engine: native, ")
    assert translated == "eins zwei\n"
    assert sample.endswith("/site-packages/tfm_cli/data/train.en\n")


def test_without_a_compiler_the_wheel_has_all_else(
    source: Path, tmp_path: Path, without_compiler: str
) -> None:
    done, wheel = build("wheel", source, PATH=without_compiler, CXX="")
    assert done.returncode == 0, done.stdout + done.stderr
    python = environments.environment(tmp_path / "environment")
    environments.install(python, str(wheel))

    version = run(python, "--version", path=without_compiler).split("\n")

    assert "the native CPU engine could not be built" in done.stdout + done.stderr
    assert wheel.name == f"tfm_cli-{tfm_cli.__version__}-py3-none-any.whl"
    assert {name for name in contents(wheel) if ".dist-info/" not in name} == wanted_files()
    assert version_of(wheel) == version[0].removeprefix("tfm ") == tfm_cli.__version__
    assert version[1].startswith("CPU engine: PyTorch, since there is no native one: it was not")
    assert version[2].startswith("  build it with `TFM_REQUIRE_NATIVE=1 ")


def test_without_a_compiler_nothing_is_built_if_the_engine_is_required(
    source: Path, without_compiler: str
) -> None:
    done, wheel = build("wheel", source, PATH=without_compiler, CXX="", TFM_REQUIRE_NATIVE="1")

    assert done.returncode != 0
    assert not wheel.exists()
    assert "could be found" in done.stdout + done.stderr  # CMake, of a compiler


def test_package_that_is_installed_in_place_finds_the_engine(
    source: Path, tmp_path: Path, without_compiler: str
) -> None:
    done, wheel = build("editable", source, TFM_REQUIRE_NATIVE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    python = environments.environment(tmp_path / "environment")
    environments.install(python, str(wheel))

    version = run(python, "--version", path=without_compiler)
    place = subprocess.run(
        [python, "-c", "import tfm_cli; print(tfm_cli.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    assert "\nCPU engine: native, " in version
    assert place == f"{source}/tfm_cli/__init__.py\n"


def test_source_distribution_has_all_that_a_build_needs(source: Path) -> None:
    done, archive = build("sdist", source)
    assert done.returncode == 0, done.stdout + done.stderr

    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    native = {str(path.relative_to(ROOT)) for path in (ROOT / "tfm_cli/native").glob("*.[hc]*")}

    assert archive.name == f"tfm_cli-{tfm_cli.__version__}.tar.gz"
    assert "tfm_cli/native/interface.cpp" in native
    assert names >= native | {"pyproject.toml", "LICENSE", "tfm_cli/native/CMakeLists.txt"}
    assert names >= {name.replace("tfm_cli/data/", "data/") for name in wanted_files()}
