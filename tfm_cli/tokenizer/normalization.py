"""Normalization rules, which a tokenizer applies to text before it splits the text into pieces.

A rule is a name that SentencePiece defines, or a file in its format: on each line the code points
of a text in hexadecimal, a tab, and the code points that replace it; a third column is a comment.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from tfm_cli.config.settings import is_rule_file
from tfm_cli.errors import DataError
from tfm_cli.files.untrusted import read_regular
from tfm_cli.tokenizer.model_file import (
    CHARSMAP,
    DENORMALIZER,
    MAX_TEXT_BYTES,
    NORMALIZER,
    check_charsmap,
    fields,
)

SILENT = 3  # SentencePiece's log level: fatal errors only
MAX_RULE_FILE_BYTES = 4 << 20
_HEXADECIMAL = re.compile(r"(?:U\+)?([0-9A-Fa-f]{1,8})")
_SPACE_RULES = (3, 4, 5)  # fields of a normalizer: rules about spaces, on by default
_RULE_FILE_NAME = 6  # field of a normalizer: the path of the rule file


def check_rule(rule: str) -> None:
    """Raise a DataError if a rule names a file that SentencePiece cannot use."""
    with trainer_options(rule):
        pass


@contextlib.contextmanager
def trainer_options(rule: str) -> Iterator[dict[str, str]]:
    """Yield the options of SentencePiece's trainer for a rule.

    A file is read and checked here; the trainer gets an unnamed copy, which disappears with this
    process even if a signal kills it.

    Raises:
        DataError: the file cannot be read, a line is not a rule, or the rules cannot be compiled.
    """
    if not is_rule_file(rule):
        yield {"normalization_rule_name": rule}
        return
    with tempfile.TemporaryFile() as stream:
        stream.write(_read_rules(Path(rule)))
        stream.flush()
        stream.seek(0)
        copy = f"/dev/fd/{stream.fileno()}"
        _check_compiled(copy, rule)
        stream.seek(0)  # on some systems opening /dev/fd/N shares the position
        yield {"normalization_rule_tsv": copy}


def changes_characters(model: bytes) -> bool:
    """Return True if a serialized model may change characters other than spaces."""
    for number, _, value in fields(model):
        if number in (NORMALIZER, DENORMALIZER) and isinstance(value, bytes):
            for inner, _, setting in fields(value):
                is_table = inner == CHARSMAP and bool(setting)
                if is_table or (inner in _SPACE_RULES and not setting):
                    return True
    return False


def without_rule_file_name(model: bytes) -> bytes:
    """Return a serialized model without the path of the rule file it was trained with."""
    result = b""
    for number, wire_type, value in fields(model):
        if number == NORMALIZER and isinstance(value, bytes):
            inner = (each for each in fields(value) if each[0] != _RULE_FILE_NAME)
            value = b"".join(_field(*each) for each in inner)
        result += _field(number, wire_type, value)
    return result


def _read_rules(path: Path) -> bytes:
    """Return the rules of a file in a canonical form, one on each line."""
    try:
        content = read_regular(path, max_bytes=MAX_RULE_FILE_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error} for normalization rules") from error
    lines = []
    for number, line in enumerate(content.decode("utf-8-sig", "replace").split("\n"), 1):
        columns = line.removesuffix("\r").split("\t")
        if not "".join(columns).strip():
            continue
        texts = [_code_points(column, f"{path}:{number}") for column in columns[:2]]
        source, target = (*texts, "")[:2]
        if not source:
            raise DataError(
                f"{path}:{number}: replaces nothing, expected code points before the tab"
            )
        if (size := len(target.encode())) > MAX_TEXT_BYTES:
            message = f"replaces text by {size} bytes, expected at most {MAX_TEXT_BYTES}"
            raise DataError(f"{path}:{number}: {message}")
        lines.append("\t".join(" ".join(f"{ord(c):X}" for c in text) for text in (source, target)))
    if not lines:
        raise DataError(f"{path}: has no rules", hint="`identity` is the rule that changes nothing")
    return "".join(f"{line}\n" for line in lines).encode()


def _code_points(column: str, position: str) -> str:
    """Return the text of the hexadecimal code points in a column.

    Args:
        column: code points separated by spaces.
        position: file and line, for messages.
    """
    text = ""
    for word in column.split():
        digits = _HEXADECIMAL.fullmatch(word)
        value = int(digits[1], 16) if digits else 0
        if not 0 < value <= 0x10FFFF or 0xD800 <= value < 0xE000:
            raise DataError(
                f"{position}: `{word}` is not a code point, expected 1 to 10FFFF in hexadecimal",
                hint="write a rule as `SOURCE<TAB>TARGET`, such as `FF0C<TAB>2C`",
            )
        text += chr(value)
    return text


def _check_compiled(copy: str, name: str) -> None:
    """Raise a DataError if rules cannot be compiled, before a model is trained with them."""
    sentencepiece.SetMinLogLevel(SILENT)
    try:
        compiled = sentencepiece.SentencePieceNormalizer(rule_tsv=copy).serialized_model_proto()
        for number, _, value in fields(compiled):
            if number == NORMALIZER and isinstance(value, bytes):
                for inner, _, charsmap in fields(value):
                    if inner == CHARSMAP and isinstance(charsmap, bytes):
                        check_charsmap(charsmap)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{name}: the rules cannot be compiled: {error}") from error


def _field(number: int, wire_type: int, value: bytes | int) -> bytes:
    """Serialize a field of a message."""
    key = _varint(number << 3 | wire_type)
    if isinstance(value, int):
        return key + _varint(value)
    return key + (_varint(len(value)) if wire_type == 2 else b"") + value


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes((*digits, value))
