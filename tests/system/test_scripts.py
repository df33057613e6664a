"""What goes in comes out, in every script: learned by heart, and given back byte for byte."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import invoke

TEXTS = {
    "Latin": "Dem „alten“ Café fehlen 10 km² – ﬁn…",
    "Cyrillic": "Їжак з’їв «ґудзик» № 5, и ёж тоже.",
    "Greek": "Ταχίστη ἀλώπηξ βαφὴς ψημένη γῆ·",
    "Arabic": "هل هذا الكتاب لكَ؟ نعم، ١٢٣ ﷺ.",
    "Persian": "می\u200cخواهم کتاب\u200cها را بخوانم؛ نه؟",
    "Hebrew": "שָׁלוֹם, מה שלומך? צה״ל – ג׳ירפה",
    "Devanagari": "यह क्\u200dष और ज़्यादा क्या है? १०।",
    "Thai": "น้ำทำให้คนจำได้ ๑๒ ฯลฯ",
    "Khmer": "តើ\u200bអ្នក\u200bសុខសប្បាយ\u200bទេ?",
    "Lao": "ສະບາຍດີ ນ້ຳດື່ມ",
    "Burmese": "မင်္ဂလာပါ၊ နေကောင်းလား။",
    "Tibetan": "བཀྲ་ཤིས་བདེ་ལེགས།",
    "Japanese": "「はい」と、ｶﾀｶﾅ　ＡＢＣ〜！",
    "simplified Chinese": "你好，世界！（是吗？）￥１００；",
    "traditional Chinese": "這裡沒有「簡體字」，對吧——",
    "Korean": "안녕하세요? 각 한글과 ㎏, １호선",
    "Amharic": "ሰላም፣ እንዴት ነህ? ፳፻ ዓመት።",
    "emoji": "👩\u200d👩\u200d👧 🏳️\u200d🌈 👍🏽 1️⃣ 🇫🇷",
    "superscripts": "10⁶ xⁿ H₂O ½ ™ ℃ ⅷ ①",
    "combining marks": "e\u0301 é a\u0308\u0323 ä\u0323 \u212b Å",
    "odd blanks": "a\u00a0b\u202fc\u2009d\u2060e\u00adf\tg",
}
# Each text is translated to the next, so that all of them stand on both sides.
PAIRS = dict(zip(TEXTS.values(), [*TEXTS.values()][1:] + [*TEXTS.values()][:1], strict=True))


@dataclass(frozen=True)
class Learned:
    """A directory with `source`, `target` and the `model` that knows them by heart; the log."""

    place: Path
    log: str

    def path(self, name: str) -> str:
        return str(self.place / name)


def run(*arguments: str, stdin: str = "") -> str:
    result = invoke(list(arguments), stdin)
    assert result.code == 0, result.err
    return result.out


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    place = tmp_path_factory.mktemp("scripts")
    for name, texts in (("source", PAIRS.keys()), ("target", PAIRS.values())):
        text = "".join(f"{line}\n" for line in texts)
        (place / name).write_text(text, encoding="utf-8", newline="")
    result = invoke(
        ["train", "-s", str(place / "source"), "-t", str(place / "target"),
         "-vs", str(place / "source"), "-vt", str(place / "target"), "-o", str(place / "model"),
         "--vocab-size", "700", "--max-updates", "120", "--valid-freq", "120", "--dropout", "0",
         "--lr", "8e-3", "--lr-warmup", "50", "--max-tokens", "2000", "--device", "cpu",
         "--precision", "fp32", "--cpu-threads", "1", "--set", "model.encoder_layers=1",
         "--set", "model.decoder_layers=1", "--set", "model.width=64",
         "--set", "model.feed_forward_width=128", "--set", "training.label_smoothing=0",
         "--set", "training.ema_decay=0.9"]
    )  # fmt: skip
    assert result.code == 0, result.err
    return Learned(place, result.err)


def test_r54_translations_are_byte_for_byte_what_was_learned(learned: Learned) -> None:
    source = (learned.place / "source").read_bytes()

    for flags in (["--greedy"], ["--beam-size", "4"], ["--format", "json"]):
        out = run("translate", "--model", learned.path("model"), "--device", "cpu", *flags,
                  stdin=source.decode())  # fmt: skip

        lines = out.split("\n")[:-1]
        if "json" in flags:
            lines = [json.loads(line)["translation"] for line in lines]
        result = dict(zip(TEXTS, lines, strict=True))
        assert result == dict(zip(TEXTS, PAIRS.values(), strict=True))


@pytest.mark.parametrize("output_format", ["piece", "id"])
@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_r54_text_comes_back_from_its_pieces(
    model_type: str, output_format: str, learned: Learned, tmp_path: Path
) -> None:
    text = (learned.place / "source").read_bytes().decode()
    prefix = str(tmp_path / "own")
    run("tokenize", "train", "-i", learned.path("source"), "--model-prefix", prefix, "-q",
        "--vocab-size", "700", "--model-type", model_type, "--no-hard-vocab-limit")  # fmt: skip

    for model in (f"{prefix}.model", learned.path("model")):
        encoded = run("tokenize", "encode", "-m", model, "--output-format", output_format,
                      stdin=text)  # fmt: skip
        decoded = run("tokenize", "decode", "-m", model, "--input-format", output_format,
                      stdin=encoded)  # fmt: skip

        assert decoded == text


def test_r54_nothing_is_changed_in_silence(learned: Learned) -> None:
    assert "changes" not in learned.log
    assert "are unknown" not in learned.log

    files = ["-s", learned.path("source"), "-t", learned.path("target")]
    report = json.loads(run("check", *files, "--model", learned.path("model"), "-f", "json"))

    pieces = report["corpora"]["train"]["tokens"]
    for side in ("source", "target"):
        assert pieces["changed"][side]["count"] == 0
        assert pieces["unknown"][side]["count"] == 0


@pytest.mark.parametrize("tokenize", ["char", "13a", "zh"])
def test_r54_what_was_learned_by_heart_has_the_highest_score(
    tokenize: str, learned: Learned
) -> None:
    metrics = ["-m", "bleu,chrf", "-tok", tokenize, "--score-only"]

    scores = run("evaluate", learned.path("target"), *metrics, "--model", learned.path("model"),
                 "--source", learned.path("source"), "--device", "cpu")  # fmt: skip

    assert [float(score) for score in scores.replace("[", " ").replace("]", " ")
            .replace(",", " ").split()] == [100.0, 100.0]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_r54_exports_read_and_write_the_same_text(learned: Learned, tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    probe = ["--probe", learned.path("source")]
    for to in ("hf", "ctranslate2"):
        result = invoke(["export", learned.path("model"), "--to", to, *probe,
                         "--output", str(tmp_path / to)])  # fmt: skip
        assert result.code == 0, result.err
        assert f"on {len(TEXTS)} lines: logits at most" in result.err
    run("import", str(tmp_path / "hf"), *probe, "--output", str(tmp_path / "back"))

    source = (learned.place / "source").read_bytes().decode()
    model = ["--model", str(tmp_path / "back"), "--device", "cpu"]
    assert run("translate", *model, stdin=source).split("\n")[:-1] == [*PAIRS.values()]

    other, tokenizer = (
        kind.from_pretrained(tmp_path / "hf")
        for kind in (transformers.MarianMTModel, transformers.MarianTokenizer)
    )
    inputs = tokenizer(source.split("\n")[:-1], return_tensors="pt", padding=True)
    written = other.generate(**inputs, num_beams=1)
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == [*PAIRS.values()]
