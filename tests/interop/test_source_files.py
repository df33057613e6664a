import json
import time
from pathlib import Path

import pytest

from tfm_cli.errors import ModelError
from tfm_cli.interop.marian.files import parse_yaml
from tfm_cli.interop.source_files import missing_files, read_json


def test_repeated_name_is_found_quickly(tmp_path: Path) -> None:
    text = json.dumps({f"p{number}": number for number in range(100_000)})
    (tmp_path / "vocab.json").write_text(f'{text[:-1]}, "p99999": 1}}')
    before = time.process_time()

    with pytest.raises(ModelError, match="`p99999` occurs twice"):
        read_json(tmp_path, "vocab.json")

    assert time.process_time() - before < 10  # a quadratic check would take many minutes


def test_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="needs tfm-cli[marian]")
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")

    assert read_json(tmp_path, "a.json") == {"a": 1}
    assert parse_yaml("a: 1".encode("utf-8-sig"), "a.yml") == {"a": "1"}


def test_missing_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    (tmp_path / "link").symlink_to("nowhere")

    result = missing_files(tmp_path, ["a", "here", "link", "b", "a"])

    assert result == ["a: is missing", "b: is missing"]
    with pytest.raises(ModelError, match=r"names a file outside of itself: `../here`"):
        missing_files(tmp_path, ["../here"])
