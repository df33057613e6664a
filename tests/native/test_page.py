"""Tests of docs/native.md: the files and names in it exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "native.md"


def test_names_in_code_are_those_of_the_engine_or_its_tests() -> None:
    prose = re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = set(re.findall(r"`(?:\w+::)*(\w+)`", prose))
    folders = (ROOT / "tfm_cli" / "native", ROOT / "tests" / "native")
    source = "".join(
        path.read_text(encoding="utf-8")
        for folder in folders
        for path in folder.iterdir()
        if path.suffix in (".h", ".cpp", ".py")
    )
    words = set(re.findall(r"\w+", source))

    assert len(names) > 20
    assert (
        sorted(names - words - {"tfm", "make", "manylinux_2_17_x86_64", "manylinux_2_35_x86_64"})
        == []
    )


def test_files_of_the_engine_are_listed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    files = [path.name for path in (ROOT / "tfm_cli" / "native").iterdir()]

    headers = [name for name in files if name.endswith(".h")]
    assert not [name for name in headers if f"/{name})" not in page]
