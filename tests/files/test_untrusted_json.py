import pytest

from tfm_cli.files.untrusted import parse_json, parse_json_object


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "Expecting value"),
        (b"\xff", "'utf-8' codec"),
        (b"[1] x", "Extra data"),
        (b'{"a": {"b": 1, "b": 2}}', "the name `b` occurs twice"),
        (b"[NaN]", "NaN is not a finite number"),
        (b"[-Infinity]", "-Infinity is not a finite number"),
        (b"[1e400]", "1e400 is not a finite number"),
        (b"[-1e400]", "-1e400 is not a finite number"),
        (b"[" * 9 + b"]" * 9, "nested deeper than 8 levels"),
        (b"[" * 200_000 + b"]" * 200_000, "nested deeper than 8 levels"),
        (b'{"a":' * 200_000, "nested deeper than 8 levels"),
        (b"1" * 5000, "Exceeds the limit"),
    ],
)
def test_invalid_json_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_json(content)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"[" * 8 + b"]" * 8, [[[[[[[[]]]]]]]]),
        (b'\xef\xbb\xbf{"a": [1, 1.5, true, "\\udc80"]}', {"a": [1, 1.5, True, "\udc80"]}),
        (b"1e300", 1e300),
        (b'"[[[[[[[[[["', "[[[[[[[[[["),
    ],
)  # fmt: skip
def test_valid_json_is_parsed(content: bytes, wanted: object) -> None:
    assert parse_json(content) == wanted


def test_only_an_object_is_accepted() -> None:
    assert parse_json_object(b"{}") == {}
    with pytest.raises(ValueError, match="it is not a JSON object"):
        parse_json_object(b"[]")
