"""The public Python API."""

import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tfm_cli
from tests.conftest import RunTfm, TinyCorpus
from tests.runs import SMALL_RUN, checkpoints, left_behind, write_part
from tfm_cli import Translator, api, evaluate, train
from tfm_cli.config.settings import SECTIONS, SearchConfig
from tfm_cli.errors import ConfigError, DataError, ModelError
from tfm_cli.model_directory.weights import weights_facts
from tfm_cli.native import library
from tfm_cli.training.update import update as make_update

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


def test_sections_of_the_settings_are_the_arguments_of_training() -> None:
    assert tuple(api.TrainingSettings.__annotations__) == SECTIONS


def test_public_names_are_listed() -> None:
    assert sorted(dir(tfm_cli)) == sorted(tfm_cli.__all__)
    assert {name for name in tfm_cli.__all__ if name != "__version__"} == set(api.__all__)
    assert all(getattr(tfm_cli, name) is getattr(api, name) for name in api.__all__)
    table = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", DOCUMENTED.read_text("utf-8"), re.MULTILINE)
    documented = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    assert set(api.__all__) <= documented
    with pytest.raises(AttributeError, match="has no attribute 'serve'"):
        _ = tfm_cli.serve


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


# --- training -------------------------------------------------------------------------------------

SHAPE: dict[str, Any] = {
    "data.max_length": 20,
    "tokenizer": {"vocab_size": 60, "byte_fallback": False, "model_type": "word"},
    "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 32, "heads": 2,
              "feed_forward_width": 64, "dropout": 0.2, "attention_dropout": 0.1,
              "activation_dropout": 0.1, "word_dropout": 0.1},
    "training": {"max_tokens": 64, "update_freq": 2, "learn_rate": 5e-3, "lr_warmup": 10,
                 "ema_decay": 0.8, "device": "cpu", "precision": "fp32", "cpu_threads": 1},
}  # fmt: skip


@pytest.fixture
def text(tiny_corpus: TinyCorpus, tmp_path: Path) -> dict[str, Any]:
    flags = write_part(tiny_corpus, tmp_path, pairs=20, valid=2)
    names = ("source", "target", "valid_source", "valid_target")
    return dict(zip(names, map(Path, flags[1::2]), strict=True))


def test_training_is_that_of_the_command(
    text: dict[str, Any], run_tfm: RunTfm, tmp_path: Path
) -> None:
    flags = [value for name, path in text.items()
             for value in (f"--{name.replace('_', '-')}", str(path))]  # fmt: skip
    command = ["train", *flags, *SMALL_RUN, "--max-length", "20", "--max-updates"]
    assert run_tfm([*command, "5", "-o", str(tmp_path / "command")]).code == 0

    settings = {**SHAPE, "training.max_updates": 3}
    first = train(tmp_path / "run", settings=settings, data=text)
    second = train(str(tmp_path / "run"), training={"max_updates": 5})
    third = train(tmp_path / "run")

    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "command")
    assert (first.updates, second.updates, third.updates) == (3, 5, 5)
    assert second.model == tmp_path / "run"
    assert second.is_complete
    assert second.reason == third.reason == "5 updates made (--max-updates)"
    facts = weights_facts(tmp_path / "run")
    assert facts is not None
    assert (second.best_update, second.scores) == (facts.update, facts.scores)
    assert second.best_score == facts.scores["bleu"]
    assert Translator(second.model).translate_line("one").text is not None


def test_training_in_a_thread_stops_on_request_and_resumes(
    text: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole", settings=SHAPE, data=text, training={"max_updates": 9})
    stop = threading.Event()

    def watched(*arguments: Any, **named: Any) -> Any:
        if arguments[3].number == 4:
            stop.set()
        return make_update(*arguments, **named)

    with monkeypatch.context() as inside, ThreadPoolExecutor(1) as executor:
        inside.setattr("tfm_cli.training.loop.update", watched)
        call = executor.submit(
            train, tmp_path / "run", settings=SHAPE, data=text, stop=stop,
            training={"max_updates": 9},
        )  # fmt: skip
        stopped = call.result()
    resumed = train(tmp_path / "run")

    assert (stopped.updates, stopped.is_complete) == (4, False)
    assert stopped.reason == "a stop was requested"
    assert (resumed.updates, resumed.is_complete) == (9, True)
    assert resumed.scores == whole.scores
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "whole")


def test_keyboard_interrupt_saves_before_it_is_raised(
    text: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(*arguments: Any, **named: Any) -> Any:
        if arguments[3].number == 4:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.2)
        return make_update(*arguments, **named)

    monkeypatch.setattr("tfm_cli.training.loop.update", watched)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", settings=SHAPE, data=text, training={"max_updates": 500})

    (newest,) = checkpoints(tmp_path / "run")[-1:]
    assert 4 <= int(newest.name.removeprefix("update-")) < 500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"max_update": 3}}, "training.max_update: unknown setting; did you mean"),
        ({"trainin": {"max_updates": 3}}, "trainin: unknown section; did you mean `training`?"),
        ({"training.seed": "x"}, "training.seed: must be a whole number, got `x`"),
        ({"training": 3}, "training: must be a table of settings, or `section.name`"),
        ({"data.pairs": "-"}, "standard input is read by the command `tfm train` only"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(tmp_path / "run", settings=settings)

    assert not (tmp_path / "run").exists()


def test_errors_of_training_are_those_of_the_command(text: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such file"):
        train(tmp_path / "run", data={"source": "nowhere", "target": "nowhere"})
    train(tmp_path / "run", settings=SHAPE, data=text, training={"max_updates": 2})
    with pytest.raises(ConfigError, match=r"learn_rate: 0\.005 → 0\.5"):
        train(tmp_path / "run", training={"learn_rate": 0.5})
    changed = train(
        tmp_path / "run", training={"learn_rate": 0.5, "max_updates": 3}, allow_change=True
    )
    assert changed.updates == 3
    text["source"].rename(tmp_path / "moved")
    with pytest.raises(DataError) as caught:
        train(tmp_path / "run", training={"max_updates": 4})
    assert "give its new place with `data.source PATH`" in str(caught.value.hint)


TRAINING_PROBE = """
import logging, signal, sys, threading
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
import tfm_cli, tfm_cli.api
assert not {"torch", "numpy"} & set(sys.modules)
import torch
torch.set_num_threads(2)
def handled():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}
def work():
    for event in (None, threading.Event()):
        tfm_cli.train(OUTPUT, settings=SETTINGS, stop=event)
        assert handled() == handlers
set_handler = signal.signal
def refused(*arguments):
    raise AssertionError("a signal handler is set")
signal.signal = refused
work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert not logging.getLogger().handlers and not logging.getLogger("tfm_cli").handlers
assert logging.getLogger("tfm_cli").level == logging.NOTSET
assert torch.get_num_threads() == 2, torch.get_num_threads()
assert not {"typer"} & set(sys.modules)
print("done")
"""


def test_training_leaves_the_process_of_the_caller_alone(
    text: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**SHAPE, "data": {name: str(path) for name, path in text.items()}}
    settings["training"] = {**SHAPE["training"], "max_updates": 2, "cpu_threads": 0}
    program = TRAINING_PROBE.replace("OUTPUT", repr(str(tmp_path / "run")))
    program = program.replace("SETTINGS", repr(settings))

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def documented_program() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENTED.read_text("utf-8"), re.DOTALL | re.M)
    return "\n".join(blocks)


def test_documented_program_runs(tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tiny_model)
    for name, lines in (("train", 200), ("valid", 5)):
        for side, suffix in (("en", "en"), ("de", "fr")):
            text = tiny_corpus.lines(f"{name}.{side}")[:lines]
            (tmp_path / f"{name}.{suffix}").write_text("\n".join(text) + "\n", "utf-8")

    done = subprocess.run(
        [sys.executable, "-c", documented_program()],
        cwd=tmp_path, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "20 updates: 20 updates made" in done.stdout
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
