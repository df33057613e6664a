import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.interop.marian_directories import (
    changed_json,
    hugging_face_model,
    ids,
    write_hugging_face_directory,
    write_json,
)
from tests.interop.random_models import TAG, lines, random_tokenizers
from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.errors import ModelError
from tfm_cli.interop.hugging_face.reading import read_hugging_face
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

transformers = pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us


TATOEBA = Path(__file__).resolve().parents[4] / "shared" / "corpora" / "tatoeba-en-de"


def plain_directory(tmp_path: Path, kind: str, **changes: Any) -> Path:
    """Return a directory whose vocabularies are SentencePiece's own, as in our exports."""
    pair = random_tokenizers(kind)
    target = pair.target
    model = hugging_face_model(pair, pad_token_id=target.eos_id, **changes)
    banned = [[i] for i in target.banned_ids]
    return write_hugging_face_directory(tmp_path, model, pair, bad_words_ids=banned)


@pytest.mark.parametrize("kind", ["joint", "separate"])
def test_own_tokenizers_are_imported_without_a_vocabulary(tmp_path: Path, kind: str) -> None:
    imported = read_hugging_face(plain_directory(tmp_path, kind), allow_pickle=False)

    assert imported.tokenizers.is_joint is (kind == "joint")
    assert imported.tokenizers.files() == random_tokenizers(kind).files()


def test_other_start_token_keeps_the_vocabulary(tmp_path: Path) -> None:
    directory = plain_directory(tmp_path, "joint", decoder_start_token_id=5)

    imported = read_hugging_face(directory, allow_pickle=False)

    assert not imported.tokenizers.is_joint
    assert imported.tokenizers.target.start_id == 5


def test_special_pieces_may_have_other_names(directory: Path) -> None:
    table = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    renamed = {{"</s>": "<end>", "<unk>": "<what>"}.get(p, p): i for p, i in table.items()}
    write_json(directory / "vocab.json", renamed)
    changed_json(directory / "tokenizer_config.json", eos_token={"content": "<end>"})
    write_json(directory / "special_tokens_map.json", {"unk_token": "<what>"})

    target = read_hugging_face(directory, allow_pickle=False).tokenizers.target

    assert target.vocabulary is not None
    assert (target.vocabulary.eos, target.vocabulary.unk) == ("<end>", "<what>")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sp_model_kwargs": {"enable_sampling": True}}, "`sp_model_kwargs` is set"),
        ({"separate_vocabs": "yes"}, "`separate_vocabs` must be true or false"),
        ({"additional_special_tokens": ["<ent>"]}, "adds the piece `<ent>`"),
        (
            {"additional_special_tokens": 5},
            "is `5`, expected a list of",
        ),
        (
            {"additional_special_tokens": [5]},
            "has `5`, expected a piece",
        ),
        ({"added_tokens_decoder": {"1": {"content": None}}}, "`added_tokens_decoder` has `{'cont"),
        ({"added_tokens_decoder": "all"}, "`added_tokens_decoder` is `all`, expected a list of"),
        ({"eos_token": "▁the"}, "`eos_token_id` 0 is `</s>`, expected `▁the`"),
        ({"unk_token": "<what>"}, "has no `<what>`"),
    ],
)
def test_unsupported_tokenizer_settings_are_refused(
    directory: Path, changes: dict[str, Any], message: str
) -> None:
    changed_json(directory / "tokenizer_config.json", **changes)

    with pytest.raises(ModelError, match=message):
        read_hugging_face(directory, allow_pickle=False)


def test_two_sizes_need_two_vocabularies(tmp_path: Path) -> None:
    pair = random_tokenizers("vocabularies")
    directory = write_hugging_face_directory(tmp_path, hugging_face_model(pair), pair)
    changed_json(directory / "tokenizer_config.json", separate_vocabs=False)

    with pytest.raises(ModelError, match="is the vocabulary of both sides"):
        read_hugging_face(directory, allow_pickle=False)


def probe_texts() -> list[str]:
    """Return sentences and odd text, without spelled-out special pieces."""
    odd = ["😀 👩‍👩‍👧 🏳️‍🌈", "ⵣ ᚠᚢᚦ 𐍈 ꙮ", "中文字符", "ａｂｃ　ｄ", "a\u200bb\u00adc", "é e\u0301",
           "\t two  blanks ", ">>deu<< hello", ">>deu<<hello", ">>xxx<< hello", ">>", "<<a>>",
           "1.0 ~ no", "▁ ▁▁", "", " "]  # fmt: skip
    texts = [*odd, *lines(300)]
    if TATOEBA.is_dir():
        with gzip.open(TATOEBA / "train.en.gz", "rt", encoding="utf-8", newline="\n") as stream:
            texts += [line.rstrip("\n") for _, line in zip(range(4700), stream, strict=False)]
    return texts + [f"{TAG} {text}" for text in texts[20:60]]


def test_ids_equal_those_of_marian_tokenizer(tmp_path: Path) -> None:
    texts = probe_texts()
    config = TokenizerConfig(vocab_size=400, byte_fallback=False)
    model = train_tokenizer(texts[16:1200], config, seed=1, soft_limit=True)
    plain = Tokenizer(model)
    # The vocabulary lacks some pieces and has another order.
    kept = sorted(set(plain.pieces[5:]) - {"▁a", "e"})
    vocabulary = Vocabulary(("</s>", "<unk>", *kept, TAG, "<pad>"))
    pair = TokenizerPair(Tokenizer(model, vocabulary), Tokenizer(model, vocabulary))
    directory = write_hugging_face_directory(tmp_path, hugging_face_model(pair), pair)
    ours = read_hugging_face(directory, allow_pickle=False).tokenizers
    theirs = transformers.MarianTokenizer.from_pretrained(directory)

    actual = [[*row, ours.source.eos_id] for row in ours.source.encode(texts)]

    assert actual == theirs(texts)["input_ids"]
    assert ours.source.unk_id in {i for row in actual for i in row}
    expected = theirs.batch_decode(actual[16:], skip_special_tokens=True)
    decoded = ours.target.decode(actual[16:])
    assert [text.strip() for text in decoded] == [text.strip() for text in expected]


def test_vocabulary_is_ordered_by_ids(directory: Path) -> None:
    table = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    shuffled = dict(sorted(table.items(), reverse=True))
    write_json(directory / "vocab.json", shuffled)

    imported = read_hugging_face(directory, allow_pickle=False)

    assert ids(imported.tokenizers.target.pieces) == table
