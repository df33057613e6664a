"""Every number that a user may give is bounded, and within its bounds nothing is a bug."""

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import TINY_SHAPE, TinyCorpus, invoke
from tests.runs import write_part
from tfm_cli.cli import app
from tfm_cli.cli.options import Option
from tfm_cli.config.settings import SECTIONS, RunConfig

KNOWN_CODES = range(7)
# A thousand threads on a few cores are slow for whatever else runs there.
CORES = ("--cpu-threads", "--num-threads", "--workers", "--data-workers")


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(_commands(typer.main.get_command(app)))
NUMBERS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.declared
    if option.kind in (int, float)
    and not option.bounds["choices"]
    and not option.is_hidden  # a flag that is gone: it is refused with any value
]
SETTINGS = [
    (section, field)
    for section in SECTIONS
    for field in dataclasses.fields(getattr(RunConfig(), section))
    if field.type in (int, float, tuple[float, ...]) and not field.metadata["choices"]
]


def _upper(bounds: Mapping[str, Any]) -> Any:
    return bounds["le"] if bounds["le"] is not None else bounds["lt"]


def test_numbers_are_found() -> None:
    result = {f"{command} {option.flag}" for command, option in NUMBERS}

    assert {"translate --temperature", "train --learn-rate", "tokenize encode --alpha"} <= result
    assert {field.name for _, field in SETTINGS} >= {"weights", "adam_epsilon", "max_updates"}


@pytest.mark.parametrize(
    ("command", "option"), NUMBERS, ids=[f"{name} {each.flag}" for name, each in NUMBERS]
)
def test_every_number_on_the_command_line_has_two_bounds(command: str, option: Option) -> None:
    assert option.bounds["ge"] is not None
    assert _upper(option.bounds) is not None


@pytest.mark.parametrize(
    ("section", "field"), SETTINGS, ids=[f"{name}.{each.name}" for name, each in SETTINGS]
)
def test_every_number_among_the_settings_has_two_bounds(
    section: str, field: dataclasses.Field[Any]
) -> None:
    bounds = field.metadata

    assert bounds["ge"] is not None  # an open end at 0 would let through what underflows
    assert bounds["le"] is not None or bounds["lt"] is not None


def _drawn(kind: type, lowest: float, highest: float) -> st.SearchStrategy[str]:
    """Numbers of a range as the command line has them, its ends often."""
    ends = st.sampled_from([kind(lowest), kind(highest)])
    if kind is int:
        return (ends | st.integers(int(lowest), int(highest))).map(str)
    return (ends | st.floats(lowest, highest, allow_nan=False)).map(repr)


def _options(command: str, without: tuple[str, ...] = ()) -> st.SearchStrategy[list[str]]:
    """A few flags of a command, each with a number of its range."""
    choices = [
        st.tuples(
            st.just(option.flag), _drawn(option.kind, option.bounds["ge"], _upper(option.bounds))
        )
        for owner, option in NUMBERS
        if owner == command and option.flag not in (*without, *CORES)
    ]
    return st.lists(st.one_of(choices), max_size=4).map(lambda pairs: [*chain(*pairs)])


def _assert_no_bug(arguments: list[str], stdin: str = "") -> None:
    result = invoke(arguments, stdin)

    assert result.code in KNOWN_CODES, result.err


QUICKLY = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICKLY
@given(
    options=_options("translate"),
    mode=st.sampled_from([[], ["--greedy"], ["--sampling"], ["--with-score"], ["--word-scores"]]),
)
def test_no_number_makes_translate_a_bug(
    options: list[str], mode: list[str], tiny_model: Path
) -> None:
    command = ["translate", "--model", str(tiny_model), *mode, *options, "--device", "cpu"]

    _assert_no_bug(command, "one two three\n\nfour five\n" + "six " * 30 + "\n")


@settings(QUICKLY, max_examples=15)
@given(
    options=_options("evaluate", ("--confidence-n", "--paired-bs-n", "--paired-ar-n")),
    mode=st.sampled_from([["-m", "bleu,chrf"], ["-m", "ter"], ["-s", "floor"], ["-s", "add-k"]]),
)
def test_no_number_makes_evaluate_a_bug(
    options: list[str], mode: list[str], tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    source, reference = tmp_path / "source", tmp_path / "reference"
    source.write_text("".join(f"{line}\n" for line in tiny_corpus.lines("test.en")[:4]))
    reference.write_text("".join(f"{line}\n" for line in tiny_corpus.lines("test.de")[:4]))
    command = ["evaluate", str(reference), *mode, *options]

    _assert_no_bug([*command, "--model", str(tiny_model), "--source", str(source)])


@settings(QUICKLY, max_examples=12)
@given(
    samples=st.sampled_from(["2", "3", "1000"]),
    method=st.sampled_from(["-ci -cin", "-pbs -pbsn", "-par -parn"]),
)
def test_no_number_makes_a_test_of_significance_a_bug(
    samples: str, method: str, tmp_path: Path
) -> None:
    for name in ("reference", "one", "other"):
        (tmp_path / name).write_text(f"one two three four {name}\nfive six\n")
    systems = [] if method.startswith("-ci") else ["-i", str(tmp_path / "other")]
    command = ["evaluate", str(tmp_path / "reference"), "-i", str(tmp_path / "one"), *systems]

    _assert_no_bug([*command, *method.split(), samples])


@pytest.mark.torture
def test_no_number_of_processes_makes_translate_a_bug(tiny_model: Path) -> None:
    command = ["translate", "--model", str(tiny_model), "--workers", "1024"]

    _assert_no_bug([*command, "--greedy"], "one two three\nfour\n")


@settings(QUICKLY, max_examples=25)
@given(options=_options("tokenize encode"))
def test_no_number_makes_encoding_a_bug(options: list[str], tiny_model: Path) -> None:
    _assert_no_bug(["tokenize", "encode", "-m", str(tiny_model), *options], "one two\n\nthree\n")


@settings(QUICKLY, max_examples=25)
@given(
    options=_options("tokenize train"),
    kind=st.sampled_from(["unigram", "bpe", "char", "word"]),
)
def test_no_number_makes_learning_a_tokenizer_a_bug(
    options: list[str], kind: str, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    command = ["tokenize", "train", "--model-prefix", str(tmp_path / "learned")]
    command += ["--model-type", kind, "--vocab-size", "60", "--no-hard-vocab-limit"]

    _assert_no_bug([*command, "-i", tiny_corpus.path("valid.en"), *options])


@settings(QUICKLY, max_examples=15)
@given(options=_options("shortlist"))
def test_no_number_makes_a_shortlist_a_bug(
    options: list[str], tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    command = ["shortlist", "--model", str(tiny_model), "-o", str(tmp_path / "table")]
    command += ["-s", tiny_corpus.path("valid.en"), "-t", tiny_corpus.path("valid.de")]

    _assert_no_bug([*command, *options])


def _values(field: dataclasses.Field[Any]) -> st.SearchStrategy[str]:
    bounds = field.metadata
    kind = int if field.type is int else float
    return _drawn(kind, bounds["ge"], _upper(bounds))


# A shape takes what memory it takes, and the text yields few tokens.
_TRAINED = [
    st.tuples(st.just(f"{section}.{field.name}"), _values(field))
    for section, field in SETTINGS
    if section != "model"
    and field.name not in ("max_updates", "vocab_size", "cpu_threads", "workers")
]


@pytest.mark.torture
@settings(QUICKLY, max_examples=25)
@given(
    assigned=st.lists(st.one_of(_TRAINED), min_size=1, max_size=4),
    dropout=st.sampled_from(["0", "0.99", repr(1 - 2**-53)]),
)
def test_no_number_makes_training_a_bug(
    assigned: list[tuple[str, str]],
    dropout: str,
    tiny_corpus: TinyCorpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = tmp_path_factory.mktemp("run")
    command = ["train", *write_part(tiny_corpus, place, pairs=24, valid=2), *TINY_SHAPE]
    command += ["--dropout", dropout, "--device", "cpu", "--output", str(place / "model")]
    for name, value in assigned:
        command += ["--set", f"{name}={value}"]

    _assert_no_bug([*command, "--max-updates", "3", "--max-time", "20s"])
