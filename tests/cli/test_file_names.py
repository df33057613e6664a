"""Names of files and directories are bytes: blanks, hyphens, line feeds, no UTF-8, any locale."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TFM, TINY_SHAPE, RunTfm, TinyCorpus
from tests.forked import PATIENCE

NAMES = {
    "blanks": b" a b ",
    "hyphen": b"-o",
    "line feed": b"a\nb",
    "no UTF-8": b"\xff\xfc",
    "all of it": b"--x \n\xff \xc3\xbc'\"$",
}
# Where Python decodes nothing but ASCII, and prints nothing else either.
POOR = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}
LEARN = [*TINY_SHAPE, "--max-updates", "1", "--device", "cpu", "--valid-freq", "1"]


def arguments_of(command: str, name: str, model: str) -> list[str]:
    """A command all of whose files have this name, but for an ending."""
    source, target, output = f"{name}.s", f"{name}.t", f"{name}.out"
    return {
        "translate": ["translate", "-gm", model, "-i", source, "-o", output, "--device", "cpu"],
        "encode": ["tokenize", "encode", "-m", model, "-i", source, "-o", output],
        "decode": ["tokenize", "decode", "-m", model, "-i", source, "-o", output],
        "tokenize train": ["tokenize", "train", "-i", source, "--model-prefix", output,
                           "--vocab-size", "14", "--model-type", "word", "--no-byte-fallback"],
        "evaluate": ["evaluate", "--model", model, "--source", source, "-o", output,
                     "--device", "cpu", "--", target],
        "check": ["check", "-s", source, "-t", target],
        "score": ["score", "-m", model, "-s", source, "-t", target, "-o", output,
                  "--device", "cpu"],
        "shortlist": ["shortlist", "-m", model, "-s", source, "-t", target, "-o", output,
                      "--device", "cpu"],
        "train": ["train", "-s", source, "-t", target, "-vs", source, "-vt", target, *LEARN,
                  "-o", output],
    }[command]  # fmt: skip


COMMANDS = [
    "translate",
    "encode",
    "decode",
    "tokenize train",
    "evaluate",
    "check",
    "score",
    "shortlist",
]


def prepare(folder: Path, name: str, corpus: TinyCorpus, model: Path) -> str:
    """Texts of this name, and a copy of the model."""
    for ending, text in (("s", "valid.en"), ("t", "valid.de")):
        shutil.copy(corpus.path(text), folder / f"{name}.{ending}")
    shutil.copytree(model, folder / f"{name}.m", ignore=shutil.ignore_patterns("c*s"))
    return f"{name}.m"


# One name that has all of it, and in `make torture` each by itself.
KINDS = [
    pytest.param(kind, marks=() if kind == "all of it" else pytest.mark.torture) for kind in NAMES
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", [*COMMANDS, pytest.param("train", marks=pytest.mark.slow)])
def test_r36_any_name_will_do(
    command: str, kind: str, tiny_corpus: TinyCorpus, tiny_model: Path, tmp_path: Path,
    run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    plain = prepare(tmp_path, "plain", tiny_corpus, tiny_model)
    name = os.fsdecode(NAMES[kind])
    model = prepare(tmp_path, name, tiny_corpus, tiny_model)

    result = run_tfm(arguments_of(command, name, model))

    assert result.code == 0, result.err
    if command == "train":
        again = run_tfm([*arguments_of("train", name, ""), "--max-updates", "2"])
        assert again.code == 0, again.err
        assert "resuming after update 1" in again.err
        return
    assert run_tfm(arguments_of(command, "plain", plain)).code == 0
    for path in tmp_path.glob("plain.out*"):
        other = tmp_path / path.name.replace("plain", name, 1)
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["translate", "encode", "evaluate", "check", "train"])
def test_r36_name_of_what_is_missing_is_spelled_in_one_line(
    command: str, kind: str, tiny_model: Path, tmp_path: Path, run_tfm: RunTfm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(NAMES[kind])

    result = run_tfm(arguments_of(command, name, str(tiny_model)))

    assert result.code == (1 if command == "check" else 3)
    assert not any(tmp_path.iterdir())
    for line in (result.out + result.err).split("\n"):
        line.encode("utf-8")  # nothing of it is half a pair
        assert line == "" or not line.startswith("b.")


@pytest.mark.slow
def test_r36_no_locale_is_too_poor(
    tiny_corpus: TinyCorpus, tiny_model: Path, tmp_path: Path
) -> None:
    name = os.fsdecode(NAMES["all of it"])
    model = prepare(tmp_path, name, tiny_corpus, tiny_model)

    for command in ("train", "translate"):
        arguments = arguments_of(command, name, model)
        done = subprocess.run(
            [*TFM, *map(os.fsencode, arguments)],
            cwd=tmp_path, env={**os.environ, **POOR, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if command == "train":
            (tmp_path / f"{name}.out").rename(tmp_path / "learned")
        if command == "translate":
            actual = (tmp_path / f"{name}.out").read_text(encoding="utf-8")

    assert "fünf" in actual
    expected = Path(tiny_corpus.path("valid.de")).read_text(encoding="utf-8")
    same = [a == b for a, b in zip(actual.split("\n"), expected.split("\n"), strict=True)]
    assert sum(same) > 36  # of 40
    assert (tmp_path / "learned" / "model.safetensors").is_file()


def test_r22_nul_in_a_name_is_refused_as_a_setting(tmp_path: Path, run_tfm: RunTfm) -> None:
    for setting in ("data.cache", "tokenizer.model", "data.source", "training.pretrained_model"):
        section, _, name = setting.partition(".")
        (tmp_path / "run.toml").write_text(f'[{section}]\n{name} = "a\\u0000b"\n', encoding="utf-8")

        result = run_tfm(["train", "-c", str(tmp_path / "run.toml"), "-o", str(tmp_path / "m")])

        assert result.code in (2, 4), result.err
        assert "must not have a NUL character" in result.err or "a\\u0000b" in result.err
        assert not (tmp_path / "m").exists()
