"""Ways to damage a directory before it is imported, and the check of the refusal."""

from collections.abc import Callable
from pathlib import Path

from tests.conftest import RunTfm

Damage = Callable[[Path], object]  # done to a directory


def refused(run_tfm: RunTfm, source: Path, message: str, *, flags: tuple[str, ...] = ()) -> None:
    """Check that the import of a damaged directory ends with one clear error and leaves nothing."""
    output = source.parent / "output"

    result = run_tfm(["import", str(source), "--output", str(output), "-q", *flags])

    assert (result.code, result.out) == (4, ""), result.err
    assert message in result.err
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    left = [path for path in source.parent.iterdir() if path != source]
    assert left == []


def cut(name: str, size: int) -> Damage:
    """Truncate a file to its first bytes."""

    def damage(source: Path) -> None:
        path = source / name
        path.write_bytes(path.read_bytes()[:size])

    return damage


def written(name: str, content: bytes) -> Damage:
    """Overwrite a file."""
    return lambda source: (source / name).write_bytes(content)


def replaced(name: str, make: Callable[[Path], object]) -> Damage:
    """Remove a file and create something else in its place."""

    def damage(source: Path) -> None:
        (source / name).unlink()
        make(source / name)

    return damage
