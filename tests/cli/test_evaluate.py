import gzip
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tfm_cli.cli import app

VOCABULARY = "the The a cat dog sat ran , . ! on under 3.5 big red été 猫 -- (mat)"
NUM_LINES = 30


@pytest.fixture(autouse=True)
def _texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ref`, `ref2`, `ref.gz` and the systems `hyp` and `other`, with blank lines and blanks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    draw = random.Random(4)
    words = VOCABULARY.split()

    def worn(lines: list[str], share: float) -> list[str]:
        return [
            " ".join(draw.choice(words) if draw.random() < share else w for w in line.split())
            for line in lines
        ]

    reference = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(NUM_LINES)]
    hypothesis = ["", *worn(reference, 0.2)[1:]]
    write("ref", reference)
    write("ref2", worn(reference, 0.1))
    write("hyp", [line + " \u2003\t" * (number % 3) for number, line in enumerate(hypothesis)])
    write("other", worn(reference, 0.6))
    Path("ref.gz").write_bytes(gzip.compress(Path("ref").read_bytes()))


def write(name: str, lines: Iterable[str]) -> None:
    Path(name).write_bytes("".join(f"{line}\n" for line in lines).encode())


def run(arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["evaluate", *arguments.split()], input=stdin)


def sacrebleu_prints(arguments: str, stdin: bytes = b"") -> bytes:
    command = [sys.executable, "-m", "sacrebleu", *arguments.split()]
    environment = os.environ | {"NO_COLOR": "1"}
    return subprocess.run(
        command, input=stdin, capture_output=True, check=True, env=environment
    ).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        "ref -i hyp",
        "ref ref2 -i hyp -m bleu chrf ter -f text",
        "ref -i hyp -m bleu chrf ter -w 4",
        "ref -i hyp -lc -tok none -s floor -sv 0.2 -f text -w 4",
        "ref -i hyp -b -m bleu chrf -f text --force",
        "ref ref2 -i hyp -ci -cin 50 -m chrf bleu -f text -sh",
        "ref.gz -i hyp -ci -cin 50 -tok char",
        "ref -i hyp -sl -m chrf -cw 2 -cc 4 -w 2",
    ],
)
def test_standard_output_is_sacrebleus_byte_for_byte(arguments: str) -> None:
    result = run(arguments)

    assert result.exit_code == 0
    assert result.stdout_bytes == sacrebleu_prints(arguments)


def test_hypotheses_come_from_standard_input_without_a_flag() -> None:
    stdin = Path("hyp").read_bytes().replace(b"\t", b" ")  # sacreBLEU reads tabs as columns

    result = run("ref -f text", stdin)

    assert result.stdout_bytes == sacrebleu_prints("ref -f text", stdin)
    assert result.stdout_bytes == run("ref -f text -i -", stdin).stdout_bytes


def test_paired_bootstrap_is_sacrebleus_with_signatures() -> None:
    arguments = "ref -i hyp other -pbs -pbsn 50"  # with chrF sacreBLEU 2.6 fails to write JSON
    expected = json.loads(sacrebleu_prints(arguments))

    actual = json.loads(run(arguments).stdout)

    signatures = [
        system[metric].pop("signature")
        for system in actual
        for metric in system
        if metric != "system"
    ]
    assert actual == expected
    assert all("bs:50|seed:12345" in signature for signature in signatures)


@pytest.mark.parametrize("arguments", ["-pbs -pbsn 50", "-par -parn 50", ""])
def test_several_systems_make_a_table_with_the_signature(arguments: str) -> None:
    result = run(f"ref -i hyp -i other -f text {arguments}")

    rows = result.stdout.splitlines()
    baseline = "Baseline: hyp" if arguments else "hyp"
    assert result.exit_code == 0
    assert re.match(rf"BLEU +{baseline} +\d+\.\d", rows[1])
    assert re.match(r"BLEU +other +\d+\.\d", rows[2])
    assert rows[2].endswith(" *") == bool(arguments)
    assert rows[4].startswith("BLEU|nrefs:1|")


@pytest.mark.parametrize("format_", ["json", "text"])
@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
def test_the_signature_is_always_printed(metric: str, format_: str) -> None:
    assert "nrefs:1|case:" in run(f"ref -i hyp -m {metric} -f {format_}").stdout


def test_score_only_prints_the_signature_to_stderr_in_one_line() -> None:
    result = run("ref -i hyp -b")

    assert re.fullmatch(r"\d+\.\d\n", result.stdout)
    assert re.fullmatch(r"BLEU\|nrefs:1\|case:mixed\|eff:no\|[^\n]+\n", result.stderr)
    assert run("ref -i hyp -b -q").stderr == result.stderr


def test_score_only_of_sentences_prints_one_signature() -> None:
    result = run("ref -i hyp -b -sl")

    assert len(result.stdout.splitlines()) == NUM_LINES
    assert re.fullmatch(r"BLEU\|nrefs:1\|case:mixed\|eff:yes\|[^\n]+\n", result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        "ref -i hyp -m bleu,chrf",
        "ref -i hyp -m bleu -m chrf",
        "ref -i hyp -m bleu chrf",
        "-m bleu chrf ref -i hyp",
        "-i hyp ref --metrics=BLEU,chrf",
        "--input hyp -m chrf,bleu,chrf ref",
    ],
)
def test_lists_of_metrics_and_the_order_of_arguments_are_free(arguments: str) -> None:
    assert run(arguments).stdout == run("ref -i hyp -m bleu chrf").stdout


def test_a_file_after_the_input_is_a_reference_where_none_came_before() -> None:
    assert run("-i hyp ref ref2").stdout == run("ref ref2 -i hyp").stdout


def test_a_baseline_given_again_is_left_out_of_a_paired_test() -> None:
    result = run("ref -i hyp hyp other -pbs -pbsn 20")

    assert [system["system"] for system in json.loads(result.stdout)] == ["Baseline: hyp", "other"]


def test_carriage_return_line_ends_score_as_line_feeds() -> None:
    Path("crlf").write_bytes(Path("ref").read_bytes().replace(b"\n", b"\r\n"))

    assert run("crlf -i hyp").stdout == run("ref -i hyp").stdout


def test_columns_on_standard_input_are_warned_of() -> None:
    result = run("ref -b", b"one\ttwo\n" * NUM_LINES)

    assert "warning: standard input has columns, but is scored as one system" in result.stderr


@pytest.mark.parametrize(
    ("line", "flag"),
    [("彼は図書館へ行きました。", "char"), ("他们今天去学校。", "zh"), ("วันนี้เราไปโรงเรียน", "char")],
)
def test_text_without_spaces_is_warned_of_and_scored_as_sacrebleu_does(
    line: str, flag: str
) -> None:
    write("unblanked", [line, line[:-2]])

    result = run("unblanked -i unblanked -b")

    assert result.stdout.encode() == sacrebleu_prints("unblanked -i unblanked -b")
    assert "warning: unblanked: the references are " in result.stderr
    assert f"use `-tok {flag}`\n" in result.stderr
    for quiet in (f"-tok {flag}", "-tok 13a", "-m chrf"):
        assert "warning" not in run(f"unblanked -i unblanked -b {quiet}").stderr
    expected = sacrebleu_prints(f"unblanked -i unblanked -b -tok {flag}")
    assert run(f"unblanked -i unblanked -b -tok {flag}").stdout.encode() == expected


def test_text_with_blanks_is_not_warned_of() -> None:
    assert "warning" not in run("ref -i ref -b").stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [("flores200", "flores200sacrebleuspm"), ("ko-mecab", "'sacrebleu[ja,ko]>=2.4'")],
)
def test_tokenizer_that_lacks_something_is_refused_before_any_reading(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "mecab_ko", None)

    result = run(f"ref -i missing -tok {name}")

    assert result.exit_code == 5
    assert message in result.stderr
    assert result.stdout == ""


def test_tokenized_hypotheses_are_warned_of_unless_forced() -> None:
    write("tokenized", ["a ."] * 100)

    assert "warning: It looks like you forgot to detokenize" in (
        run("tokenized -i tokenized -b").stderr
    )
    assert "warning" not in run("tokenized -i tokenized -b --force").stderr


def test_flags_of_another_metric_are_warned_of() -> None:
    result = run("ref -i hyp -m chrf -lc -tok none -cin 5 -q")

    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: `--tokenize` has no effect without `-m bleu`",
        "warning: `--lowercase` has no effect without `-m bleu`",
        "warning: `--confidence-n` has no effect without `--confidence`",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-m bleu --fail-under 1", ""),
        ("-m bleu --fail-under 99", r"error: bleu is \d+\.\d, expected at least 99"),
        ("-m chrf,bleu --fail-under 99.5", r"error: chrf is \d+\.\d, expected at least 99\.5"),
        ("-m ter --fail-under 99", ""),
        ("-m ter --fail-under 1", r"error: ter is \d+\.\d, expected at most 1"),
        ("other --fail-under 99", r"error: bleu is \d+\.\d, expected at least 99"),
    ],
)
def test_fail_under_exits_with_1_after_the_scores_are_printed(arguments: str, message: str) -> None:
    result = run(f"ref -i hyp {arguments}")

    assert json.loads(result.stdout)
    assert result.exit_code == bool(message)
    assert re.fullmatch(message, result.stderr.strip())


def test_fail_under_shows_the_digits_that_tell_the_score_from_the_limit() -> None:
    value = float(run("ref -i hyp -b -w 9").stdout)

    result = run(f"ref -i hyp --fail-under {round(value + 0.0501, 1)} -w 0")
    close = run(f"ref -i hyp --fail-under {value + 1e-6:.6f} -w 6")

    assert (result.exit_code, close.exit_code) == (1, 1)
    assert f"bleu is {value:.0f}" in result.stderr
    assert re.search(r"bleu is \d+\.\d{6,}, expected", close.stderr)


def test_scoring_files_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from tfm_cli.cli import app\n"
        "app(['evaluate', 'ref', '-i', 'hyp', '-b', '-q'], standalone_mode=False)\n"
        "print('torch' in sys.modules)\n"
    )
    root = str(Path(__file__).parents[2])

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": root},
    )

    assert done.stdout.splitlines()[-1] == "False"
    assert done.stderr.startswith("BLEU|nrefs:1|")


def test_help_shows_an_example_and_sacrebleus_letters() -> None:
    text = run("--help").stdout

    assert "Example:  tfm evaluate ref.de -i hyp.de -m bleu,chrf" in text
    for letters in ("-tok", "-lc", "-cw", "-ci", "-cin", "-pbs", "-par", "-sl", "-w", "-b", "-sh"):
        assert f"{letters}, --" in text
