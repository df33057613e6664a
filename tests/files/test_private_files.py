"""Whatever is in the place of a private file, nothing outside the output changes."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import TinyCorpus
from tests.files.private_files import KINDS, PRECIOUS, SCENES, Scene

CODES = (0, 2, 3, 4, 5)
# The fast tests run a few: the most frequent cases, and those that once failed.
FAST = [
    ("train goes on", "link", "model/metrics.jsonl"),
    ("train goes on", "link to a folder", "model/corpus"),
    ("train begins", "link", "model/.tfm-train.lock"),
    ("train with a shared cache", "pipe", "cache/files.json"),
    ("translate", "link", "to/.o.partial"),
    ("translate", "pipe", "to/.o.progress"),
    ("translate", "unreadable", "model/shortlist.safetensors"),
]


@pytest.fixture(scope="module")
def scenes(
    tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Scene]:
    """Return each scene by its name; it is created once."""

    @cache
    def scene(name: str) -> Scene:
        return SCENES[name](tiny_corpus, tmp_path_factory.mktemp("scene") / "world")

    return scene


def check(scene: Scene, kind: str, name: str, place: Path) -> list[str]:
    """Return what is wrong after a command ran with something in the place of a private file."""
    here = scene.copied(place / "world")
    path = here.folder / name
    KINDS[kind](path, here.folder / "theirs")
    before, stood = here.around(), path.lstat()

    try:
        result = here.run(is_privileged=kind != "unreadable")
    except AssertionError as error:  # it was still running
        return [f"{kind} for {name}: {error}"]

    wrong = []
    after = here.around()
    for each in sorted(before.keys() | after.keys()):
        if before.get(each) != after.get(each):
            wrong.append(f"{each} was {before.get(each)}, is {after.get(each)}")
    if result.code not in CODES or "Traceback" in result.err or ": None" in result.err:
        wrong.append(f"ended with {result.code}: {result.err[-2000:]}")
    if kind == "folder" and not (path / PRECIOUS).is_file():
        wrong.append(f"removed {name}/{PRECIOUS}: {result.err[-500:]}")
    is_left = os.path.lexists(path) and os.path.samestat(path.lstat(), stood)
    if result.code and kind not in ("damaged", "unreadable") and not is_left:
        wrong.append(f"refused, and not left as it was: {result.err[-500:]}")
    return [f"{kind} for {name}: {each}" for each in wrong]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("scene", "kind", "name"), FAST)
def test_r55_nothing_around_an_output_changes(
    scene: str, kind: str, name: str, scenes: Callable[[str], Scene], tmp_path: Path
) -> None:
    assert check(scenes(scene), kind, name, tmp_path) == []


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scene", SCENES)
def test_r55_nothing_around_an_output_changes_for_any_file_in_the_way(
    scene: str, kind: str, scenes: Callable[[str], Scene], tmp_path: Path
) -> None:
    result = scenes(scene)

    wrong = [
        each
        for number, name in enumerate(result.names)
        for each in check(result, kind, name, tmp_path / str(number))
    ]

    assert wrong == []


def test_r05_damaged_scheduled_best_does_not_replace_a_model(
    scenes: Callable[[str], Scene], tmp_path: Path
) -> None:
    here = scenes("train goes on").copied(tmp_path / "world")
    best = here.folder / "model" / "checkpoints" / "best-on-schedule"
    best.mkdir(exist_ok=True)
    (best / "model.safetensors").write_bytes(b"damaged")

    result = here.run()

    assert result.code == 0, result.err
    assert "the best model by schedule is lost" in result.err
    assert (here.folder / "model" / "model.safetensors").stat().st_size > 1000
