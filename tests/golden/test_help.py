import pytest

from tests.conftest import RunTfm
from tests.golden.regenerate import HELP_COMMANDS, help_path, help_text


@pytest.mark.parametrize("command", HELP_COMMANDS)
def test_help_is_as_it_was_read_last(command: str) -> None:
    assert help_text(command) == help_path(command).read_text(encoding="utf-8")


@pytest.mark.parametrize("group", [[], ["tokenize"]], ids=["tfm", "tokenize"])
def test_group_without_arguments_prints_its_help(group: list[str], run_tfm: RunTfm) -> None:
    bare, asked = run_tfm(group), run_tfm([*group, "--help"])

    assert bare == asked
    assert (bare.code, bare.err) == (0, "")
    assert "\\u000a" not in bare.out
    assert bare.out.count("\n") > 10
