"""The hash of the code that `make torture` checked depends on code, not on comments."""

from pathlib import Path

import pytest

from tests.torture import PACKAGES, code_hash

MODULE = '"""Words."""\n\nX = 1  # why\n\n\ndef f() -> int:\n    """Return it."""\n    return X\n'


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """Return a module of one of the hashed packages."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
    path = tmp_path / "files" / "module.py"
    path.write_text(MODULE)
    return path


@pytest.mark.parametrize("old", ["Words", "why", "Return it"])
def test_other_prose_has_the_same_hash(module: Path, old: str) -> None:
    before = code_hash(module.parents[1])

    module.write_text(MODULE.replace(old, "Something else"))

    assert code_hash(module.parents[1]) == before


@pytest.mark.parametrize(
    ("old", "new"), [("X = 1", "X = 0"), ("return X", "return 1"), ("f()", "g()")]
)
def test_other_code_has_another_hash(module: Path, old: str, new: str) -> None:
    before = code_hash(module.parents[1])

    module.write_text(MODULE.replace(old, new))

    assert code_hash(module.parents[1]) != before


def test_module_that_moves_has_another_hash(module: Path) -> None:
    before = code_hash(module.parents[1])

    module.rename(module.parents[1] / "text" / "module.py")

    assert code_hash(module.parents[1]) != before
