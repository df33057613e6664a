import functools
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable

import pytest

from tfm_cli.errors import plain_reason
from tfm_cli.files.untrusted import parse_json


def reason_of(read: Callable[[], object]) -> str:
    try:
        read()
    except Exception as error:
        return plain_reason(error)
    return "nothing failed"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("x", "expected a value at character 1, found `x`"),
        ('{"a": }', "expected a value at character 7, found `}`"),
        ('{"a" 1}', "expected `:` at character 6, found `1`"),
        ('{"a": 1 "b"}', 'expected `,` at character 9, found `"`'),
        ("[1, 2", "expected `,` at character 6, found the end"),
        ("{a: 1}", "expected a name in double quotes at character 2, found `a`"),
        ("[] []", "expected the end at character 4, found `[`"),
        ('{"a": "b', "the string at character 7 has no end"),
        ('"a\tb"', "a string has `\\t` at character 3, expected an escape sequence"),
        ('"a\\q"', "a string has an unknown escape sequence at character 3"),
        ('{\n "a": 1,\n "b" 2\n}\n', "expected `:` at line 3, column 6, found `2`"),
        ("9" * 5000, "a number has too many digits"),
        ("1e999", "1e999 is not a finite number"),
    ],
)
def test_damaged_json_is_described_by_place_expected_and_found(text: str, reason: str) -> None:
    assert reason_of(lambda: parse_json(text.encode())) == reason


def test_place_is_where_the_text_is_no_longer_json() -> None:
    """Cut anywhere, the place is the end, or the string that was cut."""
    text = json.dumps({"a": [1, True, None], "b": {"c": "d", "e": "f"}}, indent=1)
    for size in range(1, len(text)):
        reason = reason_of(functools.partial(parse_json, text[:size].encode()))
        line, column = text[:size].count("\n") + 1, size - text.rfind("\n", 0, size)
        at_end = (f"at line {line}, column {column}, found the end", f"at character {column}, ")
        is_word = "`t`" in reason or "`n`" in reason  # a part of `true` or `null`
        assert is_word or reason.endswith(at_end[0]) or at_end[1] in reason or "no end" in reason


def _gzip_cut() -> None:
    gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b"abc" * 99)[:-9])).read()


def _gzip_of_wrong_checksum() -> None:
    content = gzip.compress(b"abc")
    gzip.GzipFile(fileobj=io.BytesIO(content[:-8] + b"....abcd")).read()


def _gzip_and_more() -> None:
    gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b"abc") + b"more")).read()


def _no_zip() -> None:
    zipfile.ZipFile(io.BytesIO(b"no archive"))


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (_gzip_cut, "it is cut off"),
        (_gzip_of_wrong_checksum, "its checksum is wrong"),
        (_gzip_and_more, "something other than gzip data follows"),
        (lambda: zlib.decompress(b"nothing"), "its compressed data are damaged"),
        (_no_zip, "it is not a zip archive, or cut off"),
        (lambda: b"ab\xff".decode(), "byte 3 is 0xff, expected UTF-8"),
    ],
)
def test_other_damage_is_described(read: Callable[[], object], reason: str) -> None:
    assert reason_of(read) == reason


def test_reason_of_ours_is_kept() -> None:
    assert plain_reason(ValueError("it is not a JSON object")) == "it is not a JSON object"
