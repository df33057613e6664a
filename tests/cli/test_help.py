import pytest

from tests.conftest import RunTfm


@pytest.mark.parametrize("group", [[], ["tokenize"]], ids=["tfm", "tokenize"])
def test_group_without_arguments_prints_its_help(group: list[str], run_tfm: RunTfm) -> None:
    bare, asked = run_tfm(group), run_tfm([*group, "--help"])

    assert bare == asked
    assert (bare.code, bare.err) == (0, "")
    assert "\\u000a" not in bare.out
    assert bare.out.count("\n") > 10
