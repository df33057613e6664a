from pathlib import Path
from typing import Any

import pytest

from tests.interop.marian_directories import (
    marian_arrays,
    marian_model,
    write_marian_directory,
)
from tfm_cli.errors import ModelError
from tfm_cli.interop.marian.reading import read_marian

pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytest.importorskip("yaml", reason="needs tfm-cli[marian]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us


def test_search_settings_come_from_decoder_yml(directory: Path) -> None:
    imported = read_marian(directory)

    search, target = imported.config.search, imported.tokenizers.target
    assert (search.beam_size, search.length_penalty, search.early_stopping) == (6, 0.6, True)
    assert (target.start_id, target.eos_id) == (target.vocab_size - 1, 0)
    assert target.banned_ids == (1, target.vocab_size - 1)
    assert imported.notes == ()


def test_unknown_is_banned_unless_marian_allows_it(tmp_path: Path) -> None:
    theirs, pair = marian_model()
    decoder = {"allow-unk": "true"}
    write_marian_directory(tmp_path, marian_arrays(theirs), pair, decoder=decoder)

    target = read_marian(tmp_path).tokenizers.target

    assert target.banned_ids == (target.start_id,)


def test_without_decoder_yml_the_only_candidates_are_used(directory: Path) -> None:
    (directory / "decoder.yml").unlink()

    imported = read_marian(directory)

    assert imported.config.search.beam_size == 4
    assert imported.notes == ("there is no `decoder.yml`: the search has tfm's default settings",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "s2s"}, "`type` is `s2s`, expected `transformer`"),
        ({"transformer_decoder_autoreg": "rnn"}, "`transformer-decoder-autoreg` is `rnn`"),
        ({"transformer_no_projection": "true"}, "`transformer-no-projection` is `true`"),
        ({"transformer_ffn_activation": "gelu"}, r"is `gelu`, expected .* sigmoid\(1.702 x\)"),
        ({"transformer_postprocess_emb": "nd"}, "has unsupported layer norms"),
        ({"transformer_preprocess": "n"}, "has unsupported layer norms"),
        ({"transformer_ffn_depth": "3"}, "`transformer-ffn-depth` is `3`, expected `2`"),
        ({"transformer_decoder_dim_ffn": "-8"}, "`transformer-decoder-dim-ffn` must be at least"),
        ({"transformer_train_position_embeddings": "true"}, "`transformer-train-position"),
        ({"transformer_tied_layers": "[1, 1]"}, "`transformer-tied-layers` is"),
        (
            {"transformer_new_thing": "true"},
            "-new-thing` is `true`, expected it to be off",
        ),
        ({"lemma_dim_emb": "8"}, "`lemma-dim-emb` is `8`, expected it to be off"),
        ({"right_left": "true"}, "`right-left` is `true`"),
        ({"dim_vocabs": "7"}, r"`dim-vocabs` is `7`, expected the sizes of both sides$"),
        ({"dim_vocabs": "7"}, r"cannot be imported\n  special:model.yml: `dim-vocabs` is `7`, "),
        ({"dim_vocabs": "[7, 7]"}, "expected 7 as in `dim-vocabs`"),
        ({"transformer_heads": "3"}, "`transformer-heads` must divide `dim-emb`"),
        ({"dim_emb": "wide"}, "`dim-emb` must be a whole number, got `wide`"),
        ({"dim_emb": "17", "transformer_heads": "1"}, "`dim-emb` must be even, got 17"),
    ],
)
def test_unsupported_options_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    theirs, pair = marian_model()
    write_marian_directory(tmp_path, marian_arrays(theirs), pair, **options)

    with pytest.raises(ModelError, match=message):
        read_marian(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"word-penalty": "0.5"}, "`word-penalty` is `0.5`"),
        ({"beam-size": "0"}, "`beam-size` must be at least 1, got 0"),
        ({"normalize": "much"}, "`normalize` must be a number, got `much`"),
    ],
)
def test_unsupported_decoding_is_refused(
    tmp_path: Path, decoder: dict[str, str], message: str
) -> None:
    theirs, pair = marian_model()
    write_marian_directory(tmp_path, marian_arrays(theirs), pair, decoder=decoder)

    with pytest.raises(ModelError, match=message):
        read_marian(tmp_path)


def test_all_unsupported_options_are_listed(tmp_path: Path) -> None:
    theirs, pair = marian_model()
    write_marian_directory(
        tmp_path, marian_arrays(theirs), pair, type="s2s", ulr="true", transformer_pool="true",
        decoder={"word-penalty": "1"},
    )  # fmt: skip

    with pytest.raises(ModelError) as caught:
        read_marian(tmp_path)

    for name in ("`type`", "`ulr`", "`transformer-pool`", "`word-penalty`"):
        assert name in str(caught.value)


def test_pieces_that_look_like_yaml_values_stay_strings(tmp_path: Path) -> None:
    theirs, pair = marian_model()
    directory = write_marian_directory(tmp_path, marian_arrays(theirs), pair)
    path = directory / "opus.vocab.yml"
    entries = path.read_text(encoding="utf-8").split("\n")
    odd = ["no", "~", "1.0", "1.00", "null", "<<", "=", "'0x1F'", '"\\""', '"#"']
    for index, piece in enumerate(odd, 2):
        entries[index] = f"{piece}: {index}"
    path.write_text("\n".join(entries), encoding="utf-8")

    pieces = read_marian(directory).tokenizers.source.pieces

    assert pieces[2:12] == ("no", "~", "1.0", "1.00", "null", "<<", "=", "0x1F", '"', "#")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"<unk>": 1\n', "", r"must have the ids 0 … \d+, each once"),
        ('"<unk>": 1\n', '"<unk>": 0\n', r"`<unk>` and `</s>` both have 0"),
        ('"<unk>": 1\n', '"<unk>": -1\n', r"`<unk>` has `-1`"),
        ('"<unk>": 1\n', '"<unk>": ' + "1" * 5000 + "\n", f"`<unk>` has `{'1' * 20}`"),
        ('"<unk>": 1\n', '"<unk>": true\n', r"`<unk>` has `true`"),
        ('"<unk>": 1\n', '"<unk>": 01\n', r"`<unk>` has `01`"),
        ('"<unk>": 1\n', '"<unk>": [1]\n', r"`<unk>` has `\['1'\]`"),
        ('"<unk>": 1\n', '"<what>": 1\n', r"has no `<unk>`"),
        ('"<unk>": 1\n', '"</s>": 1\n', r"has `</s>` twice"),
        ('"<unk>": 1\n', '"<unk>": &a 1\n', "has anchors or aliases"),
        ('"<unk>": 1\n', '"<unk>": !!int 1\n', "has the tag"),
        ('"<unk>": 1\n', '? [a]\n: 1\n', "has a name that is not a string"),
        ('"<unk>": 1\n', '"<unk>: 1\n', "is damaged or not YAML"),
    ],
)  # fmt: skip
def test_invalid_vocabulary_is_refused(directory: Path, old: str, new: str, message: str) -> None:
    path = directory / "opus.vocab.yml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new), encoding="utf-8")

    with pytest.raises(ModelError, match=message):
        read_marian(directory)
