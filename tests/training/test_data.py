import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from tfm_cli.config.settings import DataConfig, RunConfig, TokenizerConfig
from tfm_cli.errors import ConfigError, DataError, ModelError, ResourceError
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.training import data as module
from tfm_cli.training.data import check_inputs, load_corpora, with_sample_corpus

WORDS = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
LINES = ["a b", "c", "d e f"]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, lines: list[str]) -> str:
    Path(name).write_bytes("".join(f"{line}\n" for line in lines).encode())
    return name


def config(
    sources: list[list[str]],
    targets: list[list[str]],
    valid: tuple[list[str], list[str]] | None = None,
    *,
    max_length: int = 256,
    tokenizer: TokenizerConfig = WORDS,
) -> RunConfig:
    data = DataConfig(
        source=tuple(write(f"train{i}.en", lines) for i, lines in enumerate(sources)),
        target=tuple(write(f"train{i}.de", lines) for i, lines in enumerate(targets)),
        valid_source=(write("valid.en", valid[0]),) if valid else (),
        valid_target=(write("valid.de", valid[1]),) if valid else (),
        max_length=max_length,
    )
    return RunConfig(data=data, tokenizer=tokenizer)


def test_all_files_make_one_corpus_and_one_tokenizer(log_messages: list[str]) -> None:
    settings = config([["a b"], ["c", "d"]], [["x"], ["y z", "z"]], (["a", "b"], ["x", "y"]))

    corpora = load_corpora(settings, None, Path("model"))

    assert len(corpora.train) == 3
    assert (
        corpora.tokenizers.source.unk_id
        not in corpora.tokenizers.source.encode(["a b c d x y z"])[0]
    )
    assert corpora.valid_pairs == [("a", "x"), ("b", "y")]
    assert corpora.valid is not None
    assert len(corpora.valid) == 2
    assert log_messages[1:] == [
        "tokenizer: learned a vocabulary of 11 tokens",
        "training text: 3 pairs, 7 + 7 tokens",
        "validation text: 2 pairs",
    ]


def test_dropped_pairs_are_logged_by_reason(log_messages: list[str]) -> None:
    long = "a b c d e f"
    settings = config([["a", "", long, "b"]], [["a", "b", "c", ""]], ([long], ["a"]), max_length=5)

    with pytest.raises(DataError, match=r"valid\.en: 0 usable pairs, dropped: 1 too long"):
        load_corpora(settings, None, Path("model"))

    text = "training text: 1 pair, 2 + 2 tokens, 2 dropped: blank side, 1 dropped: too long"
    assert text in log_messages


def test_existing_tokenizer_is_used() -> None:
    settled = TokenizerPair.joint(
        Tokenizer(train_tokenizer(["q r s"], WORDS, seed=1, soft_limit=True))
    )

    corpora = load_corpora(config([LINES], [LINES]), settled, Path("model"))

    assert corpora.tokenizers is settled


@pytest.mark.parametrize("name", ["own.model", "."])
def test_tokenizer_is_named_by_its_file_or_its_model_directory(name: str) -> None:
    model_bytes = train_tokenizer(["q r s"], WORDS, seed=1, soft_limit=True)
    Path("own.model").write_bytes(model_bytes)
    Path("tokenizer.model").write_bytes(model_bytes)
    settings = config([LINES], [LINES], tokenizer=TokenizerConfig(model=name))

    check_inputs(settings)

    assert load_corpora(settings, None, Path("model")).tokenizers.source.model_bytes == model_bytes


def test_tokenizer_that_cuts_text_in_one_way_only_cannot_sample() -> None:
    Path("words.model").write_bytes(train_tokenizer(LINES, WORDS, seed=1, soft_limit=True))
    named = config([LINES], [LINES], tokenizer=TokenizerConfig(model="words.model"))
    sampled = replace(named, data=replace(named.data, subword_sampling="target"))

    with pytest.raises(
        ConfigError, match="of the target is of type `word`, which cuts text in one"
    ):
        load_corpora(sampled, None, Path("model"))

    assert load_corpora(named, None, Path("model")).sampling(named) is None


def test_sampled_text_is_the_same_prepared_text() -> None:
    plain = config([LINES], [LINES], tokenizer=replace(WORDS, vocab_size=12, model_type="bpe"))
    sampled = replace(plain, data=replace(plain.data, subword_sampling="both"))

    one, other = (load_corpora(each, None, Path("model")) for each in (plain, sampled))

    assert one.sha256() == other.sha256()
    assert one.prepared == other.prepared
    assert other.sampling(sampled) is not None


def test_gzip_is_the_same_text() -> None:
    plain = config([LINES], [LINES], (LINES, LINES))
    expected = load_corpora(plain, None, Path("model"))
    for name in ("train0.en", "valid.de"):
        Path(name).write_bytes(gzip.compress(Path(name).read_bytes()))

    actual = load_corpora(plain, None, Path("model"))

    assert actual.sha256() == expected.sha256()


def test_hash_tells_which_text_was_changed() -> None:
    def hashes(target: list[str], valid: tuple[list[str], list[str]] | None) -> dict[str, str]:
        return load_corpora(config([LINES], [target], valid), None, Path("model")).sha256()

    first = hashes(LINES, (LINES, LINES))
    train = hashes(LINES[::-1], (LINES, LINES))
    valid = hashes(LINES, (LINES, LINES[::-1]))
    none = hashes(LINES, None)

    assert first.keys() == {"training text", "validation text"}
    changed = [
        [name for name in first if other[name] != first[name]] for other in (train, valid, none)
    ]
    assert changed == [["training text"], ["validation text"], ["validation text"]]


def test_misaligned_training_and_validation_text_are_reported_together() -> None:
    settings = config([LINES, LINES], [LINES[:2], ["a"]], (LINES, LINES[1:]))

    with pytest.raises(DataError) as caught:
        load_corpora(settings, None, Path("model"))

    assert str(caught.value).split("\n  ") == [
        "valid.en and valid.de do not align: 3 and 2 lines",
        "train0.en and train0.de do not align: 3 and 2 lines",
        "train1.en and train1.de do not align: 3 and 1 lines",
    ]


def test_validation_text_without_lines_is_refused() -> None:
    with pytest.raises(DataError, match=r"valid\.en: has no lines"):
        load_corpora(config([LINES], [LINES], ([], [])), None, Path("model"))


def test_repaired_lines_are_logged_once_though_read_twice(log_messages: list[str]) -> None:
    load_corpora(config([["a\0b", "long " * 40]], [["d", "e"]]), None, Path("model"))

    notes = [line for line in log_messages if "NUL" in line]
    assert notes == ["train0.en: lines with NUL characters, removed: 1 (first: line 1)"]


def test_error_names_all_unreadable_files_before_any_work() -> None:
    data = DataConfig(
        source=("no.en",), target=("no.de",), valid_source=("a",), valid_target=("b",)
    )

    with pytest.raises(DataError) as caught:
        check_inputs(RunConfig(data=data))

    assert str(caught.value).split("\n  ") == [
        "4 files cannot be used",
        "no.en: there is no such file",
        "no.de: there is no such file",
        "a: there is no such file",
        "b: there is no such file",
    ]


def test_unreadable_tokenizer_is_an_error_before_any_work() -> None:
    settings = config([LINES], [LINES], tokenizer=TokenizerConfig(model="no.model"))

    with pytest.raises(ModelError, match=r"no\.model: cannot be read"):
        check_inputs(settings)


def test_sample_stands_in_where_no_text_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sample_path", lambda name: f"sample/{name}")

    data = with_sample_corpus(DataConfig(max_length=99))

    assert data.source == ("sample/train.en",)
    assert data.target == ("sample/train.fr",)
    assert data.valid_source == ("sample/valid.en",)
    assert data.valid_target == ("sample/valid.fr",)
    assert data.max_length == 99


def test_missing_sample_is_an_error_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise ResourceError("the sample corpus is not installed")

    monkeypatch.setattr(module, "sample_path", missing)

    with pytest.raises(ResourceError, match="not installed"):
        check_inputs(RunConfig())
