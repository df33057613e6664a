import os
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from tfm_cli.config.settings import NORMALIZATION_RULES, TokenizerConfig
from tfm_cli.errors import DataError
from tfm_cli.tokenizer.model_file import check_model
from tfm_cli.tokenizer.normalization import check_rule, without_rule_file_name
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

# Text that NFKC changes, in eight scripts.
TEXTS = [
    "你好，世界！是吗？（是）", "کتاب\u200cها", "น้ำทำงาน", "10 km² und 10⁶", "½ ﬁne", "ｶﾀｶﾅ　全角",
    "한글 각", "e\u0301 é", "…", "…™", "no\u00a0break", "tab\there", "ⅷ ㎏ ①",
]  # fmt: skip


def learn(rule: str) -> bytes:
    settings = TokenizerConfig(vocab_size=400, normalization_rule_name=rule)
    return train_tokenizer(TEXTS * 9, settings, seed=1, soft_limit=True)


def restored(tokenizer: Tokenizer, lines: list[str]) -> list[str]:
    return tokenizer.decode(tokenizer.encode(lines))


def test_text_is_restored_by_default() -> None:
    settings = TokenizerConfig(vocab_size=400)
    tokenizer = Tokenizer(train_tokenizer(TEXTS * 9, settings, seed=1, soft_limit=True))

    assert restored(tokenizer, TEXTS) == TEXTS


def test_runs_of_blanks_become_one_and_ends_are_stripped() -> None:
    tokenizer = Tokenizer(learn("identity"))

    assert restored(tokenizer, ["  a   b ", " ", "a \u3000 b"]) == ["a b", "", "a \u3000 b"]


@pytest.mark.parametrize("rule", NORMALIZATION_RULES)
def test_named_rule_is_that_of_sentencepiece(rule: str) -> None:
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule)
    tokenizer = Tokenizer(learn(rule))

    expected = [normalizer.Normalize(text).replace("▁", " ").strip(" ") for text in TEXTS]
    assert restored(tokenizer, TEXTS) == expected
    assert (expected == TEXTS) == (rule == "identity")


def test_rules_of_a_file_are_applied(tmp_path: Path) -> None:
    path = tmp_path / "own rules.tsv"
    path.write_bytes(b"\xef\xbb\xbfFF0C\t2C\t# a comma\r\n\nU+200C\n41 42\t63 64\n200B\t\n")

    tokenizer = Tokenizer(learn(str(path)))

    assert restored(tokenizer, ["世，界\u200c AB BA ½\u200b"]) == ["世,界 cd BA ½"]


def test_model_does_not_tell_where_the_rules_stood(tmp_path: Path) -> None:
    models = []
    for name in ("a.tsv", "a much longer name.tsv"):
        (tmp_path / name).write_text("FF0C\t2C\n", encoding="utf-8")
        models.append(learn(str(tmp_path / name)))

    assert models[0] == models[1]
    assert b".tsv" not in models[0]
    assert b"/dev/fd" not in models[0]


def test_model_without_a_rule_file_is_unchanged() -> None:
    model = learn("nfkc")

    assert without_rule_file_name(model) == model


def test_cost_of_a_rule_file_is_logged_once_at_load(
    tmp_path: Path, log_messages: list[str]
) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("FF0C\t2E\n", encoding="utf-8")
    model = learn(str(path))
    other = learn("nfkc")
    log_messages.clear()

    check_model(model, name="m.model")
    check_model(model, name="m.model")
    check_model(other, name="n.model")

    assert len(log_messages) == 1
    assert log_messages[0].startswith("m.model: has normalization rules of its own, ")
    assert log_messages[0].endswith(" s")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "own.tsv: has no rules"),
        ("\n \n", "own.tsv: has no rules"),
        ("41\t62\nzz\t41\n", "own.tsv:2: `zz` is not a code point, expected 1 to 10FFFF"),
        ("41\t110000\n", "own.tsv:1: `110000` is not a code point"),
        ("41\tD800\n", "own.tsv:1: `D800` is not a code point"),
        ("41\t0\n", "own.tsv:1: `0` is not a code point"),
        ("0\t41\n", "own.tsv:1: `0` is not a code point"),
        ("-41\t41\n", "own.tsv:1: `-41` is not a code point"),
        ("4_1\t41\n", "own.tsv:1: `4_1` is not a code point"),
        ("+41\t41\n", "own.tsv:1: `+41` is not a code point"),
        ("41,42\n", "own.tsv:1: `41,42` is not a code point"),
        ("\t41\n", "own.tsv:1: replaces nothing, expected code points before the tab"),
        (f"41\t{'1F600 ' * 65}\n", "own.tsv:1: replaces text by 260 bytes, expected at most 256"),
        (f"41\t42\t{'#' * (4 << 20)}\n", "bytes, expected at most 4194304 for normalization rules"),
        ("".join(f"{'41 ' * i}\t42\n" for i in range(1, 99)), "the rules cannot be compiled: "),
    ],
)  # fmt: skip
def test_file_that_holds_no_rules_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(DataError) as caught:
        check_rule(str(path))

    assert message in str(caught.value)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["none", "folder", "pipe"])
def test_rules_are_read_from_a_regular_file_only(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)

    with pytest.raises(DataError, match=r"own\.tsv: cannot be read: "):
        check_rule(str(path))


def test_sentencepiece_prints_nothing(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("FF0C\t2C\n", encoding="utf-8")
    program = f"from tfm_cli.tokenizer.normalization import check_rule; check_rule({str(path)!r})"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert (done.stdout, done.stderr) == (b"", b"")
