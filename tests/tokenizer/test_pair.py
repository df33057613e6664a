import hashlib
import io

import pytest
import sentencepiece

from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.errors import ModelError
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.sampling import LineSampler
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import TrainerOptions, train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

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

    again = TokenizerPair.from_files(pair.files(), origin="model")

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
        ModelError, match=r"m: has tokenizer files that do not belong together: `source\.model`$"
    ):
        TokenizerPair.from_files({"source.model": ONE}, origin="m")


def test_torn_vocabulary_is_refused_by_its_name() -> None:
    files = {**pairs()["shared vocabulary"].files(), "vocab.json": b"{"}

    with pytest.raises(ModelError, match=r"m/vocab\.json: is damaged or not a vocabulary"):
        TokenizerPair.from_files(files, origin="m")


# Tokenizers with a vocabulary.


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
    """SentencePiece returns unknown text unchanged, and the vocabulary may have a piece for it."""
    assert tokenizer.unk_id not in tokenizer.encode(["aß"])[0]
    assert tokenizer.unk_id in tokenizer.encode(["a漢"])[0]


def test_language_tag_at_the_start_of_a_line_is_one_piece(tokenizer: Tokenizer) -> None:
    tag = tokenizer.pieces.index(">>deu<<")

    assert tokenizer.encode([">>deu<< abc"])[0] == [tag, *tokenizer.encode(["abc"])[0]]
    assert tokenizer.encode([">>deu<<"])[0] == [tag]
    assert tokenizer.encode_pieces([">>deu<<abc"])[0][0] == ">>deu<<"
    assert LineSampler(tokenizer).pieces(">>deu<< abc", seed=1)[0] == ">>deu<<"
    assert tokenizer.language_tags == (">>deu<<",)


def test_unknown_language_tag_is_one_unknown_piece(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([">>xyz<< abc"])[0] == [
        tokenizer.unk_id, *tokenizer.encode(["abc"])[0],
    ]  # fmt: skip
    assert tokenizer.language_tag(">>xyz<< abc") == ">>xyz<<"


@pytest.mark.parametrize("line", ["abc >>deu<<", " >>deu<< abc", ">> deu << abc", ">><< abc", ""])
def test_malformed_language_tag_is_text(line: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.language_tag(line) == ""
    assert tokenizer.pieces.index(">>deu<<") not in tokenizer.encode([line])[0]


def test_language_tag_is_text_to_a_tokenizer_without_a_vocabulary() -> None:
    assert Tokenizer(ONE).language_tag(">>deu<< abc") == ""
    assert Tokenizer(ONE).language_tags == ()


# Language tags of a SentencePiece model.


TAGS = (">>deu<<", ">>fra<<")
TAGGED_TEXT = [f"{tag} abc fed {number}" for number in range(50) for tag in TAGS] + ["one two"] * 9


@pytest.fixture(scope="module", params=["unigram", "bpe", "char", "word"])
def tagged(request: pytest.FixtureRequest) -> Tokenizer:
    config = TokenizerConfig(vocab_size=90, byte_fallback=False, model_type=request.param)
    return Tokenizer(
        train_tokenizer(TAGGED_TEXT, config, seed=1, soft_limit=True, tags=lambda: TAGS)
    )


def test_learned_language_tag_is_one_piece_as_of_a_vocabulary(tagged: Tokenizer) -> None:
    rest = tagged.encode(["abc fed"])[0]

    assert tagged.language_tags == TAGS
    ids = {tag: tagged.piece_ids([tag])[0] for tag in TAGS}
    assert len({*ids.values(), tagged.unk_id}) == 3
    for tag in TAGS:
        for line in (f"{tag} abc fed", f"{tag}abc fed", f"{tag}  abc fed"):
            assert tagged.encode([line])[0] == [ids[tag], *rest]
            assert tagged.piece_ids(tagged.encode_pieces([line])[0]) == [ids[tag], *rest]
            assert tagged.encode_spans([line])[0][0] == (0, len(tag))
            assert len(tagged.encode_spans([line])[0]) == 1 + len(rest)
            assert tagged.tag_length(line) == 1
        assert tagged.encode([tag])[0] == [ids[tag]]
        assert tagged.marian_pieces[ids[tag]] == tag
        (pieces,) = tagged.encode_pieces([f"{tag} abc fed"])
        assert Tokenizer(tagged.model_bytes).decode_pieces([pieces]) == [f"{tag} abc fed"]


def test_unknown_tag_of_a_learned_model_is_one_unknown_piece(tagged: Tokenizer) -> None:
    line = ">>xyz<< abc fed"

    assert tagged.language_tag(line) == ">>xyz<<"
    assert tagged.encode([line, "abc", ""]) == [
        [tagged.unk_id, *tagged.encode(["abc fed"])[0]], tagged.encode(["abc"])[0], [],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sampling_keeps_a_learned_tag(kind: str) -> None:
    config = TokenizerConfig(vocab_size=90, byte_fallback=False, model_type=kind)
    model = train_tokenizer(TAGGED_TEXT, config, seed=1, soft_limit=True, tags=lambda: TAGS)
    tokenizer = Tokenizer(model)

    for seed in range(9):
        pieces = LineSampler(tokenizer).pieces(">>fra<< abc", seed=seed)
        assert tokenizer.piece_ids(pieces[:1]) == tokenizer.piece_ids([">>fra<<"])
    assert set(tokenizer.piece_ids(list(tokenizer.language_tags))) < tokenizer.unsampled_ids


def test_user_defined_symbol_that_is_a_tag_is_a_tag() -> None:
    config = TokenizerConfig(vocab_size=90, byte_fallback=False)
    model = train_tokenizer(
        TAGGED_TEXT, config, seed=1, soft_limit=True,
        options=TrainerOptions(extra={"user_defined_symbols": ">>fra<<,abc"}),
    )  # fmt: skip

    assert Tokenizer(model).language_tags == (">>fra<<",)
    assert Tokenizer(model).encode_pieces([">>fra<< abc"])[0][0] == "▁>>fra<<"
    assert "abc" in Tokenizer(model).pieces


def sentencepiece_own(symbol: str) -> Tokenizer:
    """Return a tokenizer as trained by earlier versions: its tags have no blank before them."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TAGGED_TEXT), model_writer=written, vocab_size=90,
        hard_vocab_limit=False, minloglevel=3, user_defined_symbols=[symbol],
    )  # fmt: skip
    return Tokenizer(written.getvalue())


def test_tag_without_a_blank_is_cut_as_before_and_still_a_tag() -> None:
    tokenizer = sentencepiece_own(">>fra<<")

    assert tokenizer.encode_pieces([">>fra<< abc"])[0][:2] == ["▁", ">>fra<<"]
    assert tokenizer.language_tags == (">>fra<<",)
    assert tokenizer.tag_length(">>fra<< abc") == 2
    assert tokenizer.tag_length(">>xyz<< abc") == tokenizer.tag_length("abc >>fra<<") == 0
    assert tokenizer.reads_tags_as_text


def test_learned_piece_that_looks_like_a_tag_is_none() -> None:
    assert sentencepiece_own("x").language_tags == ()
