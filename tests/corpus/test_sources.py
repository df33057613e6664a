import re

import pytest

from tfm_cli.config.settings import DataConfig
from tfm_cli.corpus.sources import CorpusFile, training_files
from tfm_cli.errors import ConfigError


def test_aligned_files_precede_files_of_pairs() -> None:
    data = DataConfig(source=("a", "b"), target=("c", "d"), pairs=("e.tsv", "f.JSONL.gz"))

    assert training_files(data) == (
        CorpusFile(("a", "c"), ("a", "c"), "lines"),
        CorpusFile(("b", "d"), ("b", "d"), "lines"),
        CorpusFile(("e.tsv",), ("e.tsv",), "tsv"),
        CorpusFile(("f.JSONL.gz",), ("f.JSONL.gz",), "jsonl"),
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.tsv.zst", "tsv"), ("x.tsv.xz", "tsv"), ("x.ndjson", "jsonl"), ("tsv.jsonl", "jsonl")],
)
def test_format_is_that_of_the_file_name(name: str, message: str) -> None:
    (file,) = training_files(DataConfig(pairs=(name,)))

    assert file.format == message


def test_set_format_overrides_the_file_name() -> None:
    files = training_files(DataConfig(pairs=("x.jsonl", "-"), pairs_format="tsv"))

    assert [file.format for file in files] == ["tsv", "tsv"]


def test_standard_input_is_read_from_its_copy() -> None:
    data = DataConfig(pairs=("-",), pairs_format="tsv")

    assert training_files(data, standard_input="copy") == (
        CorpusFile(("copy",), ("standard input",), "tsv"),
    )


@pytest.mark.parametrize(("path", "shown"), [("a.txt", "a.txt"), ("-", "standard input")])
def test_name_without_a_known_suffix_is_refused(path: str, shown: str) -> None:
    message = (
        f"{shown}: its name does not show the format of its pairs, expected `.tsv` or `.jsonl`"
    )

    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        training_files(DataConfig(pairs=(path,)))

    assert "--pairs-format" in str(caught.value.hint)


def test_standard_input_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="standard input can be read only once, and is named tw"):
        training_files(DataConfig(pairs=("-", "-"), pairs_format="tsv"))
