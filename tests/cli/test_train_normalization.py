"""`tfm train` and the rules by which its tokenizer changes characters."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import RunTfm
from tests.runs import SMALL_RUN, checkpoints
from tfm_cli.model_directory.config_file import load_config
from tfm_cli.tokenizer.tokenizer import Tokenizer

COMMAND = ["train", "-s", "a.en", "-t", "a.fa", *SMALL_RUN, "--set", "tokenizer.model_type=char"]
TEXT = "کتاب\u200cها ½ km²，"
RULE = "--normalization-rule-name"


@pytest.fixture(autouse=True)
def _text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.en").write_text("one\ntwo\n" * 20, encoding="utf-8")
    Path("a.fa").write_text(f"{TEXT}\n" * 40, encoding="utf-8")


def train(run_tfm: RunTfm, *flags: str, updates: int = 1, code: int = 0) -> str:
    result = run_tfm([*COMMAND, "--max-updates", str(updates), *flags])
    assert result.code == code, result.err
    return result.err


def restored(line: str = TEXT) -> str:
    tokenizer = Tokenizer.load(Path("model/tokenizer.model"))
    return tokenizer.decode(tokenizer.encode([line]))[0]


def make_older() -> None:
    """Leave the run as 0.1.0 would have left it."""
    path = Path("model/config.json")
    header = json.loads(path.read_bytes())
    del header["sha256"], header["settings"]["tokenizer"]["normalization_rule_name"]
    header["format_version"] = 2
    path.write_text(json.dumps(header), encoding="utf-8")


def rule() -> str:
    return load_config(Path("model")).settings.tokenizer.normalization_rule_name


def test_text_is_learned_as_it_is_unless_asked_otherwise(run_tfm: RunTfm) -> None:
    train(run_tfm)
    assert restored() == TEXT

    train(run_tfm, RULE, "nmt-nfkc", "--overwrite")
    assert restored() == "کتاب ها 1⁄2 km2,"

    train(run_tfm, "--set", "tokenizer.normalization_rule_name=nfkc", "--overwrite")
    assert restored() == "کتاب\u200cها 1⁄2 km2,"


def test_rules_of_a_file_are_needed_until_the_tokenizer_is_learned(run_tfm: RunTfm) -> None:
    stderr = train(run_tfm, RULE, "own.tsv", code=3)
    assert "error: own.tsv: cannot be read: No such file or directory\n" in stderr
    assert not Path("model").exists()

    Path("own.tsv").write_text("BD\t31 2F 32\n", encoding="utf-8")
    stderr = train(run_tfm, RULE, "own.tsv")
    assert restored() == TEXT.replace("½", "1/2")
    assert "tokenizer: has normalization rules of its own, so each process first loads" in stderr

    Path("own.tsv").unlink()
    train(run_tfm, RULE, "own.tsv", updates=2)
    assert checkpoints(Path("model"))[-1].name == "update-00000002"


def test_older_run_keeps_its_tokenizer_when_it_is_resumed(run_tfm: RunTfm) -> None:
    train(run_tfm, RULE, "nmt_nfkc")
    tokenizer = Path("model/tokenizer.model").read_bytes()
    make_older()
    assert rule() == "nmt_nfkc"

    for updates in (2, 3):
        stderr = train(run_tfm, updates=updates)
        assert f"resuming after update {updates - 1} of `model`" in stderr
        assert Path("model/tokenizer.model").read_bytes() == tokenizer
        assert rule() == "nmt_nfkc"


def test_older_run_without_a_checkpoint_begins_again_with_its_rule(run_tfm: RunTfm) -> None:
    train(run_tfm, RULE, "nmt_nfkc")
    tokenizer = Path("model/tokenizer.model").read_bytes()
    make_older()
    shutil.rmtree("model/checkpoints")
    Path("model/checkpoints").mkdir()

    assert "starting over" in train(run_tfm)
    assert Path("model/tokenizer.model").read_bytes() == tokenizer


def test_older_run_is_not_resumed_with_another_rule(run_tfm: RunTfm) -> None:
    train(run_tfm, RULE, "nmt_nfkc")
    make_older()

    stderr = train(run_tfm, RULE, "identity", code=2)
    assert "  tokenizer.normalization_rule_name: `nmt_nfkc` → `identity`\n" in stderr

    train(run_tfm, "--overwrite")
    assert (rule(), restored()) == ("identity", TEXT)


def test_older_model_translates_and_is_started_from_as_before(run_tfm: RunTfm) -> None:
    train(run_tfm, RULE, "nmt_nfkc", "-vs", "a.en", "-vt", "a.fa", "--valid-freq", "1")
    before = run_tfm(["translate", "--model", "model", "--device", "cpu"], "one\n½\n")
    make_older()

    after = run_tfm(["translate", "--model", "model", "--device", "cpu"], "one\n½\n")
    assert (after.code, after.out) == (0, before.out)
    train(run_tfm, "--pretrained-model", "model", "-o", "tuned")
    tokenizers = [Path(name, "tokenizer.model").read_bytes() for name in ("model", "tuned")]
    assert tokenizers[0] == tokenizers[1]


def test_newer_run_is_not_resumed_with_another_rule(run_tfm: RunTfm) -> None:
    train(run_tfm, RULE, "nfkc")

    stderr = train(run_tfm, RULE, "identity", updates=2, code=2)
    assert "  tokenizer.normalization_rule_name: `nfkc` → `identity`\n" in stderr
    train(run_tfm, updates=2)
    assert rule() == "nfkc"


@pytest.mark.parametrize("other", ["--tokenizer", "--pretrained-model"])
def test_rule_is_not_for_a_tokenizer_that_exists(other: str, run_tfm: RunTfm) -> None:
    train(run_tfm, "-vs", "a.en", "-vt", "a.fa", "--valid-freq", "1")
    flags = [flag for flag in COMMAND if flag not in ("--vocab-size", "60")]

    result = run_tfm([*flags, "-o", "new", other, "model", RULE, "nfkc"])

    assert result.code == 2
    assert f"`{other}` and `--normalization-rule-name` exclude each other" in result.err


def test_unknown_rule_is_refused_with_the_nearest(run_tfm: RunTfm) -> None:
    stderr = train(run_tfm, RULE, "nfkd", code=2)

    assert (
        "--normalization-rule-name: must be one of `identity`, `nfkc`, `nmt_nfkc`, "
        "`nfkc_cf`, `nmt_nfkc_cf` or a file that ends in `.tsv`, got `nfkd`; did you mean `nfkc`?"
    ) in stderr


def test_log_counts_the_lines_that_are_changed_with_the_first(run_tfm: RunTfm) -> None:
    assert "changes" not in train(run_tfm)

    stderr = train(run_tfm, RULE, "nmt_nfkc", "-o", "other")
    assert (
        "warning: training text: the tokenizer changes 40 of 40 target lines (100.0 %), first "
        "a.fa:1: `کتاب\u200cها ½ km²，` becomes `کتاب ها 1⁄2 km2,`; set "
        "`tokenizer.normalization_rule_name` to `identity`\n"
    ) in stderr

    stderr = run_tfm(
        [*(flag for flag in COMMAND if flag not in ("--vocab-size", "60")), "--max-updates", "1",
         "-o", "third", "--tokenizer", "other"]
    ).err  # fmt: skip
    assert "learn the tokenizer with `--normalization-rule-name identity`\n" in stderr
