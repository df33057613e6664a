"""Options: declared once, read by the rules of the settings, without pydantic."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from tfm_cli.cli.options import Command, Options, option
from tfm_cli.errors import ConfigError


class SomeOptions(Options):
    files: tuple[Path, ...] = option("Files", metavar="FILE", default=...)
    whole: int = option("Numbers", "--whole", "-w", default=3, ge=-5, le=100)
    number: float | None = option("Numbers", "--number", ge=0)
    word: str = option("Words", "--word", default="a")
    kind: Literal["one", "two"] = option("Words", "--kind", default="one")
    several: tuple[str, ...] = option("Words", "--several", default=())
    on: bool = option("Words", "--on", default=True)
    off: bool = option("Words", "--off", default=False)


def _nothing(options: SomeOptions) -> None:
    """Do nothing."""


COMMAND = Command(
    _nothing, SomeOptions, {"Files": (), "Numbers": ("training.max_tokens",), "Words": ()}
)


def read(**values: Any) -> Any:
    return COMMAND.parsed({"files": ["f"], **values})


def test_values_have_the_declared_types() -> None:
    options = read(
        files=["f", "g"], whole="+7", number="1e-3", word="", kind="two", several=["x", "y"],
        on=False, off=True, training_max_tokens="auto",
    )  # fmt: skip

    assert options.files == (Path("f"), Path("g"))
    assert (options.whole, options.number, options.word, options.kind) == (7, 0.001, "", "two")
    assert (options.several, options.on, options.off) == (("x", "y"), False, True)
    assert options.settings == {"training": {"max_tokens": 0}}
    assert options.given["max_tokens"] == "--max-tokens"


def test_option_that_is_not_given_has_its_default() -> None:
    options = read()

    assert (options.whole, options.number, options.several) == (3, None, ())
    assert (options.on, options.off) == (True, False)
    assert options.given == {"files": "FILE"}
    assert options.settings == {"training": {}}
    assert options.setting("training", "max_tokens") == 4096


def test_options_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        read().whole = 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("files", [], "`FILE` is missing"),
        ("whole", "-6", "`--whole` must be at least -5, got -6"),
        ("whole", "101", "`--whole` must be at most 100, got 101"),
        ("whole", "7.0", "`--whole` must be a whole number, got `7.0`"),
        ("whole", "1_0", "`--whole` must be a whole number, got `1_0`"),
        ("whole", "٣", "`--whole` must be a whole number, got `٣`"),
        ("whole", "", "`--whole` must be a whole number, got (none)"),
        ("number", "x", "`--number` must be a number, got `x`"),
        ("number", "nan", "`--number` must be a finite number, got nan"),
        ("number", "1e400", "`--number` must be a finite number, got inf"),
        ("number", "-1", "`--number` must be at least 0, got -1.0"),
        ("kind", "Two", "`--kind` must be one of `one`, `two`, got `Two`; did you mean `two`?"),
        ("training_max_tokens", "many", "`--max-tokens` must be a whole number, got `many`"),
    ],
)
def test_value_that_an_option_cannot_have_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{name: value})

    assert str(caught.value) == message


def test_commands_do_not_import_pydantic(tmp_path: Path) -> None:
    """Its import takes longer than the translation of a line."""
    code = (
        "import sys; from tfm_cli.cli import app\n"
        "try: app()\n"
        "except SystemExit: assert 'pydantic' not in sys.modules, 'imported'"
    )
    for arguments in (
        ["--version"],
        ["translate", "--model", tmp_path, "--beam-size", "2", "--length-penalty", "0.6"],
        ["translate", "--beam-size", "x"],
        ["evaluate", tmp_path / "none", "-m", "bleu", "chrf"],
        ["tokenize", "encode", "--model", tmp_path],
        ["check", "--source", "none", "--target", "none"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], input=b"", capture_output=True
        )
        assert done.returncode == 0, done.stderr
