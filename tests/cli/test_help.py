import pytest

from tests.conftest import RunTfm


@pytest.mark.parametrize("group", [[], ["tokenize"]], ids=["tfm", "tokenize"])
def test_group_without_arguments_prints_its_help(group: list[str], run_tfm: RunTfm) -> None:
    bare, asked = run_tfm(group), run_tfm([*group, "--help"])

    assert bare == asked
    assert (bare.code, bare.err) == (0, "")
    assert "\\u000a" not in bare.out
    assert bare.out.count("\n") > 10


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        ("help", "--help"),
        ("help help", "--help"),
        ("help train", "train --help"),
        ("help tokenize train", "tokenize train --help"),
        ("tokenize help encode", "tokenize encode --help"),
        ("version", "--version"),
        ("-V", "--version"),
    ],
)
def test_words_that_hands_know_are_flags(asked: str, flags: str, run_tfm: RunTfm) -> None:
    result = run_tfm(asked.split())

    assert result == run_tfm(flags.split())
    assert (result.code, result.err) == (0, "")
    assert result.out


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("evalute", "`evalute`: no such command; did you mean `evaluate`?", "tfm --help"),
        ("help trian", "`trian`: no such command; did you mean `train`?", "tfm --help"),
        ("tokenize foo", "`foo`: no such command", "tfm tokenize --help"),
        ("--nothing", "`--nothing`: no such option", "tfm --help"),
        (
            "train --learn-rat 3",
            "`--learn-rat`: no such option; did you mean `--learn-rate`?",
            "tfm train --help",
        ),
        (
            "train --encoder_layers=6",
            "`--encoder_layers`: no such option; it is a setting: "
            "`--set model.encoder_layers=VALUE`",
            "tfm train --help",
        ),
        (
            "train --beam 3",
            "`--beam`: no such option; it is a setting: `--set search.beam_size=VALUE`",
            "tfm train --help",
        ),
        (
            "train --learn_rat 3",
            "`--learn_rat`: no such option; did you mean `--learn-rate`?",
            "tfm train --help",
        ),
        ("train --valid_source", "`--valid_source` needs a value", ""),
        ("version extra", "unexpected argument `extra`", ""),
        ("translate a b", "unexpected argument `a b`", "tfm translate --help"),
        ("translate a", "unexpected argument `a`", "tfm translate --help"),
        ("translate --model", "`--model` needs a value", ""),
        ("translate --quiet=3", "`--quiet` takes no value", ""),
        ("translate --format x", "`--format` must be one of `text`, `json`, got `x`", ""),
        ("sample", "`DIR` is missing", ""),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_one_voice(
    arguments: str, message: str, hint: str, run_tfm: RunTfm
) -> None:
    result = run_tfm(arguments.split())

    told = f"hint: `{hint}` lists" if hint else ""
    assert (result.code, result.out) == (2, "")
    assert result.err.split("\n")[0] == f"error: {message}"
    assert result.err.split("\n")[1].startswith(told)
    assert len(result.err.split("\n")) == 2 + bool(hint)
