import hashlib

import pytest

from tfm_cli.config import TokenizerConfig
from tfm_cli.errors import ModelError
from tfm_cli.tokenizer import Tokenizer, train_tokenizer
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.vocabulary import Vocabulary

PIECES = TokenizerConfig(vocab_size=20, byte_fallback=False)
SPECIAL = ("</s>", "<unk>")


def learned(text: str) -> bytes:
    return train_tokenizer([text], PIECES, seed=1, soft_limit=True)


ONE, TWO = learned("abc def"), learned("äöü ß xyz")


def vocabulary_of(*models: bytes) -> Vocabulary:
    pieces = dict.fromkeys(p for model in models for p in Tokenizer(model).pieces[4:])
    return Vocabulary((*SPECIAL, *reversed(pieces), ">>deu<<", "<pad>"))


def pairs() -> dict[str, TokenizerPair]:
    shared = vocabulary_of(ONE, TWO)
    return {
        "joint": TokenizerPair.joint(Tokenizer(ONE)),
        "separate": TokenizerPair(Tokenizer(ONE), Tokenizer(TWO)),
        "shared vocabulary": TokenizerPair(Tokenizer(ONE, shared), Tokenizer(TWO, shared)),
        "a vocabulary each": TokenizerPair(
            Tokenizer(ONE, vocabulary_of(ONE)), Tokenizer(TWO, vocabulary_of(TWO))
        ),
    }


FILES = {
    "joint": ["tokenizer.model"],
    "separate": ["source.model", "target.model"],
    "shared vocabulary": ["source.model", "target.model", "vocab.json"],
    "a vocabulary each": [
        "source.model", "source.vocab.json", "target.model", "target.vocab.json",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_pair_is_read_back_from_its_files(kind: str) -> None:
    pair = pairs()[kind]

    again = TokenizerPair.from_files(pair.files(), place="model")

    assert sorted(pair.files()) == FILES[kind]
    assert again.files() == pair.files()
    assert again.sha256 == pair.sha256
    assert again.vocab_sizes == pair.vocab_sizes
    assert again.source.encode(["abc fed"]) == pair.source.encode(["abc fed"])
    assert again.target.encode(["ß äxy"]) == pair.target.encode(["ß äxy"])
    assert again.is_joint == (kind == "joint")
    assert again.shares_vocabulary == (kind in ("joint", "shared vocabulary"))


def test_hashes_tell_all_pairs_apart() -> None:
    assert len({pair.sha256 for pair in pairs().values()}) == len(FILES)
    assert pairs()["joint"].sha256 == hashlib.sha256(ONE).hexdigest()
    swapped = TokenizerPair(Tokenizer(TWO), Tokenizer(ONE))
    assert swapped.sha256 != pairs()["separate"].sha256


def test_files_that_do_not_stand_together_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"m: has tokenizer files that do not stand together: `source\.model`$"
    ):
        TokenizerPair.from_files({"source.model": ONE}, place="m")


def test_torn_vocabulary_is_refused_by_its_name() -> None:
    files = {**pairs()["shared vocabulary"].files(), "vocab.json": b"{"}

    with pytest.raises(ModelError, match=r"m/vocab\.json: is torn or no vocabulary"):
        TokenizerPair.from_files(files, place="m")


# --- tokenizers with a vocabulary ----------------------------------------------------------------


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(ONE, vocabulary_of(ONE, TWO))


def test_ids_are_those_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.encode_pieces(["abc fed"])[0]

    assert pieces == Tokenizer(ONE).encode_pieces(["abc fed"])[0]
    assert tokenizer.encode(["abc fed"])[0] == [tokenizer.pieces.index(piece) for piece in pieces]
    assert tokenizer.decode(tokenizer.encode(["abc fed"])) == ["abc fed"]


def test_special_ids_are_those_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    last = len(tokenizer.pieces) - 1

    assert (tokenizer.eos_id, tokenizer.unk_id, tokenizer.start_id) == (0, 1, last)
    assert tokenizer.banned_ids == (last,)
    assert tokenizer.vocab_size == last + 1
    assert tokenizer.decode([[0, 1, *tokenizer.encode(["cab"])[0], last]]) == ["cab"]


def test_character_that_only_the_other_side_learned_is_known_by_the_vocabulary(
    tokenizer: Tokenizer,
) -> None:
    """SentencePiece hands over what it does not know as it is; the vocabulary may know it."""
    assert tokenizer.unk_id not in tokenizer.encode(["aß"])[0]
    assert tokenizer.unk_id in tokenizer.encode(["a漢"])[0]


def test_language_tag_at_the_start_of_a_line_is_one_piece(tokenizer: Tokenizer) -> None:
    tag = tokenizer.pieces.index(">>deu<<")

    assert tokenizer.encode([">>deu<< abc"])[0] == [tag, *tokenizer.encode(["abc"])[0]]
    assert tokenizer.encode([">>deu<<"])[0] == [tag]
    assert tokenizer.encode_pieces([">>deu<<abc"])[0][0] == ">>deu<<"
    assert tokenizer.sample_pieces(">>deu<< abc", seed=1)[0] == ">>deu<<"
    assert tokenizer.language_tags == (">>deu<<",)


def test_unknown_language_tag_is_one_unknown_piece(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([">>xyz<< abc"])[0] == [
        tokenizer.unk_id, *tokenizer.encode(["abc"])[0],
    ]  # fmt: skip
    assert tokenizer.language_tag(">>xyz<< abc") == ">>xyz<<"


@pytest.mark.parametrize("line", ["abc >>deu<<", " >>deu<< abc", ">> deu << abc", ">><< abc", ""])
def test_what_is_no_language_tag_is_text(line: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.language_tag(line) == ""
    assert tokenizer.pieces.index(">>deu<<") not in tokenizer.encode([line])[0]


def test_language_tag_is_text_to_a_tokenizer_without_a_vocabulary() -> None:
    assert Tokenizer(ONE).language_tag(">>deu<< abc") == ""
    assert Tokenizer(ONE).language_tags == ()
