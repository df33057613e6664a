"""The public Python API."""

import itertools
import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tfm_cli
from tests.conftest import RunTfm, TinyCorpus
from tfm_cli import Translator, api, evaluate
from tfm_cli.config.settings import SearchConfig
from tfm_cli.errors import ConfigError, ModelError
from tfm_cli.native import library

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = ROOT / "docs" / "python.md"

needs_native = pytest.mark.skipif(not library.available(), reason="the native engine is not built")


@pytest.fixture
def lines(tiny_corpus: TinyCorpus) -> list[str]:
    text = tiny_corpus.lines("train.en")
    return [*text[:20], "", "  ", text[0] * 3, "☃", *text[20:40]]


def texts(translator: Translator, lines: list[str]) -> list[str]:
    return [translation.text for translation in translator.translate(lines)]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, []),
        ({"beam_size": 1}, ["--greedy"]),
        ({"beam_size": 5, "n_best": 3, "scores": True}, ["--beam", "5", "--n-best", "3"]),
        (
            {"sampling": True, "n_best": 2, "seed": 4},
            ["--sampling", "--n-best", "2", "--seed", "4"],
        ),
        ({"max_length": 4, "on_long": "cut"}, ["--max-length", "4", "--on-long", "cut"]),
        ({"precision": "int8", "length_penalty": 0.5}, ["--precision", "int8", "--lenpen", "0.5"]),
    ],
    ids=str,
)
@needs_native
def test_translations_are_those_of_the_command(
    options: dict[str, Any],
    flags: list[str],
    tiny_model: Path,
    lines: list[str],
    run_tfm: RunTfm,
) -> None:
    command = ["translate", "--model", str(tiny_model), "--format", "json", "-q", *flags]
    result = run_tfm(command, "".join(f"{line}\n" for line in lines))
    assert result.code == 0, result.err

    found = list(Translator(tiny_model, **{"scores": True, **options}).translate(lines))

    objects = [json.loads(line) for line in result.out.split("\n")[:-1]]
    assert len(found) == len(objects) == len(lines)
    for one, other in zip(found, objects, strict=True):
        assert one.text == other["translation"]
        if "n_best" in other:
            assert [each.text for each in one.candidates] == [
                each["translation"] for each in other["n_best"]
            ]
        if one.source.strip() and "sampling" not in options:
            assert one.candidates[0].score == pytest.approx(other["score"], abs=1e-4)
            assert sum(one.candidates[0].word_scores) == pytest.approx(
                one.candidates[0].log_probability, abs=1e-4
            )


@needs_native
def test_threads_share_a_translator(tiny_model: Path, lines: list[str]) -> None:
    translator = Translator(tiny_model, sampling=True, max_tokens=40, buffer_size=7)
    expected = texts(translator, lines)
    start = threading.Barrier(6)

    def translated(_: int) -> list[str]:
        start.wait()
        return texts(translator, lines)

    with ThreadPoolExecutor(6) as executor:
        assert list(executor.map(translated, range(6))) == [expected] * 6
    assert texts(Translator(tiny_model, sampling=True, threads=3, max_tokens=40), lines) == expected


def test_lines_are_read_a_buffer_at_a_time(tiny_model: Path) -> None:
    read = itertools.count()
    endless = (f"line {next(read)}" for _ in itertools.repeat(None))

    translations = Translator(tiny_model, buffer_size=5, beam_size=1).translate(endless)

    assert next(read) == 0  # nothing is read before a translation is wanted
    assert [next(translations).source for _ in range(6)] == [f"line {n}" for n in range(1, 7)]
    assert next(read) == 11


def test_translation_begins_with_its_prefix(tiny_model: Path, lines: list[str]) -> None:
    translator = Translator(tiny_model)
    (whole,) = translator.translate(lines[:1])
    beginning = whole.text.split()[0]

    assert translator.translate_line(lines[1], prefix=beginning).text.startswith(beginning)
    with pytest.raises(ValueError, match="fewer prefixes than lines"):
        list(translator.translate(lines[:3], prefixes=["", ""]))


@needs_native
def test_attention_to_source_words_is_returned(tiny_model: Path, lines: list[str]) -> None:
    translation = Translator(tiny_model, alignment=True).translate_line(lines[0])

    (candidate,) = translation.candidates
    assert len(candidate.alignment) == len(candidate.text.split())
    assert {len(row) for row in candidate.alignment} == {len(lines[0].split())}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_sise": 3}, "beam_sise: unknown option; did you mean `beam_size`?"),
        ({"beam_size": "3"}, "beam_size must be a whole number, got `3`"),
        ({"beam_size": 0}, "beam_size must be at least 1, got 0"),
        ({"beam_size": 2, "n_best": 3}, "n_best must be at most beam_size, got 3 and 2"),
        ({"length_norm": "x"}, "length_norm must be one of `power`, `wu`, got `x`"),
        ({"on_long": "drop"}, "on_long must be `split` or `cut`, got `drop`"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"precision": "fp8"}, "fp8"),
        ({"device": "tpu"}, "tpu"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_at_once(
    options: dict[str, Any], message: str, tiny_model: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Translator(tiny_model, **options)


def test_missing_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model is given"):
        Translator([])
    with pytest.raises(ModelError, match="nowhere"):
        Translator(tmp_path / "nowhere")


def test_closed_translator_translates_no_more(tiny_model: Path, lines: list[str]) -> None:
    with Translator(tiny_model) as translator:
        begun = translator.translate(lines)
        first = next(begun).text
    translator.close()

    assert [first, *(translation.text for translation in begun)] == texts(
        Translator(tiny_model), lines
    )
    with pytest.raises(ValueError, match="the translator is closed"):
        translator.translate(lines)


def test_text_in_place_of_lines_is_refused(tiny_model: Path) -> None:
    """A string is a sequence of strings, so that each character would be a line."""
    with pytest.raises(TypeError, match="expected lines, got one text"):
        Translator(tiny_model).translate("abc")
    with pytest.raises(TypeError, match="expected a list of hypotheses"):
        evaluate("ab", [["a", "b"]])
    with pytest.raises(TypeError, match="expected a list of hypotheses"):
        evaluate(["a", "b"], ["a", "b"])


def test_evaluation_is_that_of_sacrebleu() -> None:
    from sacrebleu import BLEU, CHRF

    hypotheses, references = ["one two three four", "five"], [["one two three five", "five"]]

    bleu, chrf = evaluate(hypotheses, references, metrics=["bleu", "chrf"])

    assert bleu.value == BLEU().corpus_score(hypotheses, references).score
    assert chrf.value == CHRF().corpus_score(hypotheses, references).score
    assert bleu.signature.startswith("nrefs:1|case:mixed|")


def test_settings_of_the_search_are_the_arguments() -> None:
    fields = SearchConfig.__dataclass_fields__
    arguments = api.SearchSettings.__annotations__

    assert list(arguments) == list(fields)
    for name, field in fields.items():
        choices = field.metadata["choices"]
        expected = set(choices) if choices else {field.type}
        assert set(getattr(arguments[name], "__args__", [arguments[name]])) == expected


def test_public_names_are_listed() -> None:
    assert sorted(dir(tfm_cli)) == sorted(tfm_cli.__all__)
    assert {name for name in tfm_cli.__all__ if name != "__version__"} == set(api.__all__)
    assert all(getattr(tfm_cli, name) is getattr(api, name) for name in api.__all__)
    table = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", DOCUMENTED.read_text("utf-8"), re.MULTILINE)
    documented = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    assert set(api.__all__) <= documented
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        _ = tfm_cli.train


PROBE = """
import logging, signal, sys, threading
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
from tfm_cli import Translator
import tfm_cli.api
imported = set(sys.modules)
if PYTORCH:
    import torch
    torch.set_num_threads(2)

def work():
    translator = Translator(MODEL)
    print([translation.text for translation in translator.translate(["a b", "", "c"])])

work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
assert not logging.getLogger().handlers and not logging.getLogger("tfm_cli").handlers
if PYTORCH:
    assert torch.get_num_threads() == 2, torch.get_num_threads()
else:
    assert not {"torch", "numpy"} & set(sys.modules)
assert not {"sacrebleu", "rich", "typer"} & imported
"""


@pytest.mark.parametrize(
    "pytorch",
    [pytest.param(False, marks=needs_native, id="native"), pytest.param(True, id="torch")],
)
def test_process_of_the_caller_is_left_alone(pytorch: bool, tiny_model: Path) -> None:
    program = PROBE.replace("PYTORCH", str(pytorch)).replace("MODEL", repr(str(tiny_model)))
    environment = {"TFM_NATIVE_LIBRARY": "none"} if pytorch else {}

    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    one, other = done.stdout.split("\n")[:-1]
    assert one == other


def documented_program() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENTED.read_text("utf-8"), re.DOTALL | re.M)
    return "\n".join(blocks)


def test_documented_program_runs(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tiny_model)

    done = subprocess.run(
        [sys.executable, "-c", documented_program()],
        cwd=tmp_path, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "nowhere: " in done.stdout
    assert re.search(r"^BLEU \d+\.\d nrefs:1\|case:lc", done.stdout, re.MULTILINE)


@pytest.mark.torture
@pytest.mark.timeout(300)
def test_documented_program_has_types(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(documented_program(), "utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"),
         str(program)],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout
