import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfm_cli.config.settings import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TokenizerConfig,
    TrainingConfig,
)
from tfm_cli.errors import ModelError
from tfm_cli.files.layout import WEIGHTS_FILE
from tfm_cli.model_directory.config_file import (
    FORMAT_VERSION,
    load_config,
    load_tokenizers,
    save_config,
    weights_identity,
)
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

CONFIG = RunConfig(
    preset="small",
    data=DataConfig(source=("train.fr",), target=("données.de",)),
    model=ModelConfig(width=32, heads=2, dropout=0.25),
)


def tokenizer(text: str = "a b c d e") -> Tokenizer:
    settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
    return Tokenizer(train_tokenizer([text], settings, seed=1, soft_limit=True))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_config(tmp_path, CONFIG, TokenizerPair.joint(tokenizer()))
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header = json.loads(path.read_bytes())
    del header["sha256"]  # as after an intended edit
    change(header)
    path.write_text(json.dumps(header), encoding="utf-8")


def test_saved_config_is_loaded(saved: Path) -> None:
    config = load_config(saved)

    assert config.settings == CONFIG
    assert config.vocab_sizes == (tokenizer().vocab_size,) * 2
    tokenizers = load_tokenizers(saved, config)
    assert tokenizers.is_joint
    assert tokenizers.source.model_bytes == tokenizer().model_bytes


def test_format_1_keeps_its_meaning(saved: Path) -> None:
    def as_format_1(header: dict[str, Any]) -> None:
        del header["tokenizer_files"], header["source_vocab_size"]
        del header["settings"]["search"]["length_norm"]
        del header["settings"]["search"]["early_stopping"]
        header["format_version"] = 1

    edit(saved / "config.json", as_format_1)

    config = load_config(saved)
    assert config.settings.search.length_norm == "wu"
    assert not config.settings.search.early_stopping
    assert load_tokenizers(saved, config).is_joint


def test_model_with_one_shape_for_both_sides_is_saved_in_an_older_format(
    tmp_path: Path,
) -> None:
    same = ModelConfig(width=32, heads=2, decoder_heads=2, decoder_feed_forward_width=2048)

    save_config(tmp_path, RunConfig(model=same), TokenizerPair.joint(tokenizer()))

    header = json.loads((tmp_path / "config.json").read_bytes())
    assert header["format_version"] == 3
    assert not {"decoder_heads", "decoder_feed_forward_width"} & set(header["settings"]["model"])
    assert load_config(tmp_path).settings.model == ModelConfig(width=32, heads=2)


@pytest.mark.parametrize(("schedule", "is_there"), [("inverse-sqrt", False), ("linear", True)])
def test_usual_schedule_is_left_out_since_older_versions_do_not_know_it(
    schedule: str, is_there: bool, tmp_path: Path
) -> None:
    config = RunConfig(training=TrainingConfig(schedule=schedule))
    save_config(tmp_path, config, TokenizerPair.joint(tokenizer()))

    settings = json.loads((tmp_path / "config.json").read_bytes())["settings"]["training"]

    assert ("schedule" in settings) == is_there
    assert "decay_ratio" not in settings
    assert load_config(tmp_path).settings.training == config.training


@pytest.mark.parametrize("change", [{"decoder_heads": 4}, {"decoder_feed_forward_width": 48}])
def test_model_with_another_decoder_is_saved_in_a_format_that_older_versions_refuse(
    change: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig(model=ModelConfig(width=32, heads=2, **change))

    save_config(tmp_path, config, TokenizerPair.joint(tokenizer()))

    header = json.loads((tmp_path / "config.json").read_bytes())
    assert header["format_version"] == 4
    assert change.items() <= header["settings"]["model"].items()
    assert load_config(tmp_path).settings == config


def test_dropout_of_0_is_left_out_so_that_older_versions_read_the_model(tmp_path: Path) -> None:
    config = RunConfig(model=ModelConfig(activation_dropout=0.0, word_dropout=0.25))

    save_config(tmp_path, config, TokenizerPair.joint(tokenizer()))

    model = json.loads((tmp_path / "config.json").read_bytes())["settings"]["model"]
    assert not {"attention_dropout", "activation_dropout"} & set(model)
    assert model["word_dropout"] == 0.25
    assert load_config(tmp_path).settings == config
    assert load_config(tmp_path).settings.model.attention_dropout == 0


def test_consistency_training_is_left_out_unless_it_is_used(tmp_path: Path) -> None:
    names = {"consistency", "consistency_alpha", "token_cutoff"}
    used = RunConfig(training=TrainingConfig(consistency="simcut", token_cutoff=0.25))
    saved = []
    for config in (RunConfig(), used):
        save_config(tmp_path, config, TokenizerPair.joint(tokenizer()))
        assert load_config(tmp_path).settings == config
        saved.append(json.loads((tmp_path / "config.json").read_bytes())["settings"]["training"])

    assert not names & set(saved[0])
    assert names & set(saved[1]) == {"consistency", "token_cutoff"}


def test_two_tokenizers_are_saved_and_loaded(tmp_path: Path) -> None:
    pair = TokenizerPair(tokenizer("a b c"), tokenizer("v w x y z"))
    apart = dataclasses.replace(CONFIG, model=ModelConfig(tied_embeddings=2))

    save_config(tmp_path, apart, pair)

    config = load_config(tmp_path)
    assert config.vocab_sizes == (pair.source.vocab_size, pair.target.vocab_size)
    assert load_tokenizers(tmp_path, config).files() == pair.files()


def test_shared_embeddings_of_two_vocabulary_sizes_are_refused(saved: Path) -> None:
    edit(saved / "config.json", lambda header: header.update(source_vocab_size=77))

    with pytest.raises(ModelError, match=r"source and target share embeddings, but have 77 and"):
        load_config(saved)


def test_config_is_formatted_for_people(saved: Path) -> None:
    text = (saved / "config.json").read_text(encoding="utf-8")

    assert '      "target": [\n        "données.de"\n      ],' in text
    assert text.endswith("}\n")


def test_file_name_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"train-\xff.fr")
    data = dataclasses.replace(CONFIG.data, source=(name,))

    save_config(tmp_path, dataclasses.replace(CONFIG, data=data), TokenizerPair.joint(tokenizer()))

    assert load_config(tmp_path).settings.data.source == (name,)


def test_setting_that_a_saved_model_lacks_has_its_default(saved: Path) -> None:
    edit(saved / "config.json", lambda header: header["settings"]["training"].pop("seed"))

    assert load_config(saved).settings.training.seed == 1


@pytest.mark.parametrize(
    ("section", "name", "value", "expected"),
    [
        ("training", "save_freq", 2**63 - 1, 10**12),
        ("training", "max_updates", 10**400, 10**12),
        ("training", "learn_rate", 1e39, 1e38),
        ("training", "adam_epsilon", 1e-300, 1e-30),
        ("search", "buffer_size", 10**15, 10**12),
        ("search", "temperature", 1e300, 1000),
        ("search", "repetition_penalty", 1e-300, 0.01),
    ],
)
def test_number_saved_without_a_bound_is_clamped(
    section: str, name: str, value: float, expected: float, saved: Path
) -> None:
    def change(header: dict[str, Any]) -> None:
        header["settings"][section][name] = value

    edit(saved / "config.json", change)

    assert getattr(getattr(load_config(saved).settings, section), name) == expected


@pytest.mark.parametrize("value", [0, -1, "x", True, None])
def test_number_that_was_never_valid_is_refused(value: object, saved: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["settings"]["training"]["save_freq"] = value

    edit(saved / "config.json", change)

    with pytest.raises(ModelError, match=r"training\.save_freq: must be "):
        load_config(saved)


@pytest.mark.parametrize("setting", [b'"beam_size": 4', b'"seed": 1'])
def test_modified_setting_is_refused(setting: bytes, saved: Path) -> None:
    path = saved / "config.json"
    content = path.read_bytes()
    assert setting in content

    path.write_bytes(content.replace(setting, setting[:-1] + b"7"))
    with pytest.raises(ModelError, match="is not what was saved: its SHA-256 differs") as caught:
        load_config(saved)
    assert "remove its line `sha256`" in str(caught.value.hint)

    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if b'"sha256"' not in line))
    load_config(saved)


def test_reformatted_config_is_accepted(saved: Path) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=None), encoding="utf-8")

    assert load_config(saved).settings == CONFIG


def test_missing_directory_and_missing_file_are_distinguished(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none: there is no such model directory") as caught:
        load_config(tmp_path / "none")
    assert "tfm train --output" in str(caught.value.hint)

    with pytest.raises(ModelError, match=r"has no `config\.json`: it is incomplete, or it is not"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or not a model config: it is empty"),
        (b'{"format_version": 1,', "is damaged or not a model config"),
        (b"\xff", "is damaged or not a model config: byte 1 is 0xff, expected UTF-8"),
        (
            b'{"format_version": NaN}',
            "is damaged or not a model config: NaN is not a finite number",
        ),
        (b'{"a": 1, "a": 2}', "is damaged or not a model config: the name `a` occurs twice"),
        (b"[" * 100_000, "is damaged or not a model config"),
        (b"[]", "is damaged or not a model config: it is not a JSON object"),
        (
            b'{"format_version": 1e400}',
            "model config: 1e400 is not a finite number",
        ),
        (b"{}", "is not a model config: `format_version` is missing or not a number"),
        (b'{"format_version": true}', "`format_version` is missing or not a number"),
        (b" " * (1 << 20) + b"{}", "has 1048578 bytes, expected at most 1048576"),
        (b'{"format_version": 1}', "has settings that cannot be used\n  settings: must be a table"),
    ],
)
def test_invalid_config_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(ModelError) as caught:
        load_config(tmp_path)

    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert message in str(caught.value)


def test_newer_format_is_refused_with_its_version(saved: Path) -> None:
    newer = FORMAT_VERSION + 1
    edit(
        saved / "config.json",
        lambda header: header.update(format_version=newer, tfm_version="9.9"),
    )

    message = rf"has format {newer}, but tfm .* made by tfm 9\.9"
    with pytest.raises(ModelError, match=message) as caught:
        load_config(saved)

    assert caught.value.hint == "install a newer tfm"


def test_all_invalid_settings_are_listed(saved: Path) -> None:
    def spoil(header: dict[str, Any]) -> None:
        header["settings"]["model"]["heads"] = -1
        header["settings"]["model"]["wings"] = 2
        header["vocab_size"] = 1e9
        header["evil"], header["worse"] = {}, []
        header["tokenizer_sha256"] = 5
        header["tokenizer_files"]["../a"] = ""

    edit(saved / "config.json", spoil)

    with pytest.raises(ModelError) as caught:
        load_config(saved)

    assert str(caught.value).split("\n  ")[1:] == [
        "evil: unknown name, and 1 more",
        "model.heads: must be at least 1, got -1",
        "model.wings: unknown setting",
        "vocab_size: must be between 2 and 1000000, got 1000000000.0",
        "tokenizer_sha256: must be a string",
        "tokenizer_files: has names that are not tokenizer files: ../a",
    ]


def test_very_many_settings_are_not_listed(saved: Path) -> None:
    names = {f"encoder_layer{number}": 1 for number in range(1001)}
    edit(saved / "config.json", lambda header: header.update(settings={"model": names}))

    with pytest.raises(ModelError) as caught:
        load_config(saved)

    assert str(caught.value).split("\n  ")[1:] == ["settings: must be at most 1000, got 1001"]


def test_other_tokenizer_is_refused_with_both_hashes(saved: Path) -> None:
    other = tokenizer("v w x y z")
    (saved / "tokenizer.model").write_bytes(other.model_bytes)

    with pytest.raises(ModelError) as caught:
        load_tokenizers(saved, load_config(saved))

    assert str(caught.value) == (
        f"{saved / 'tokenizer.model'}: is not the tokenizer in config.json: "
        f"expected SHA-256 {tokenizer().sha256}, got {other.sha256}"
    )


def test_tokenizer_of_another_size_is_refused(saved: Path) -> None:
    edit(saved / "config.json", lambda header: header.update(vocab_size=77, source_vocab_size=77))

    with pytest.raises(ModelError, match=r"expected 77 tokens, got \d+"):
        load_tokenizers(saved, load_config(saved))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
def test_irregular_file_is_refused(name: str, saved: Path) -> None:
    config = load_config(saved)
    (saved / name).unlink()
    os.mkfifo(saved / name)

    with pytest.raises(ModelError, match=f"{name}: is not a regular file"):
        load_tokenizers(saved, load_config(saved) if name == "config.json" else config)


def test_identity_of_weights_depends_on_their_content(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden"
    copy, damaged = tmp_path / "copy", tmp_path / "damaged"
    for directory in (copy, damaged):
        directory.mkdir()
    (copy / WEIGHTS_FILE).write_bytes((golden / "model_v1" / WEIGHTS_FILE).read_bytes())
    (damaged / WEIGHTS_FILE).write_bytes(b"damaged")

    places = (golden / "model_v1", golden / "model_v2", copy, damaged)
    first, second, same, none = (weights_identity(place) for place in places)

    assert first == same
    assert len({first, second, none}) == 3
    with pytest.raises(ModelError, match=r"has no `model\.safetensors`"):
        weights_identity(tmp_path)
