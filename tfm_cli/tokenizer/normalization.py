"""Normalization rules: what a tokenizer makes of characters before it cuts text into pieces.

A rule is one of SentencePiece's names, or a file in its format: on each line the code points of a
text in hexadecimal, a tab, and the code points that replace it; a third column is a comment.
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
from tfm_cli.tokenizer.model_check import (
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
_BLANK_RULES = (3, 4, 5)  # of a normalizer, on unless it was switched off: about blanks
_RULE_FILE_NAME = 6  # the field of a normalizer in which SentencePiece notes the file's path


def check_rule(rule: str) -> None:
    """Raise a DataError if a rule names a file that SentencePiece cannot use."""
    with trainer_options(rule):
        pass


@contextlib.contextmanager
def trainer_options(rule: str) -> Iterator[dict[str, str]]:
    """Yield the options by which SentencePiece's trainer applies a rule.

    A file is read and checked here; the trainer is given a copy that no signal leaves behind.

    Raises:
        DataError: the file cannot be read, or has a line that is no rule, or too many of them.
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
        stream.seek(0)  # where a second opening shares the position of the first
        yield {"normalization_rule_tsv": copy}


def changes_characters(model: bytes) -> bool:
    """Return True unless a serialized model cuts and joins text as it is, but for blanks."""
    for number, _, value in fields(model):
        if number in (NORMALIZER, DENORMALIZER) and isinstance(value, bytes):
            for inner, _, setting in fields(value):
                is_table = inner == CHARSMAP and bool(setting)
                if is_table or (inner in _BLANK_RULES and not setting):
                    return True
    return False


def without_rule_file_name(model: bytes) -> bytes:
    """Return a serialized model without the path of the rule file that it was learned with."""
    kept = b""
    for number, form, value in fields(model):
        if number == NORMALIZER and isinstance(value, bytes):
            inner = (each for each in fields(value) if each[0] != _RULE_FILE_NAME)
            value = b"".join(_field(*each) for each in inner)
        kept += _field(number, form, value)
    return kept


def _read_rules(path: Path) -> bytes:
    """Read a rule file; returns it in the plainest form, a rule a line."""
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
            raise DataError(f"{path}:{number}: replaces nothing, wanted code points before the tab")
        if (size := len(target.encode())) > MAX_TEXT_BYTES:
            told = f"replaces text by {size} bytes, wanted at most {MAX_TEXT_BYTES}"
            raise DataError(f"{path}:{number}: {told}")
        lines.append("\t".join(" ".join(f"{ord(c):X}" for c in text) for text in (source, target)))
    if not lines:
        raise DataError(f"{path}: has no rules", hint="`identity` is the rule that changes nothing")
    return "".join(f"{line}\n" for line in lines).encode()


def _code_points(column: str, place: str) -> str:
    """Return the text that a column spells in hexadecimal."""
    text = ""
    for word in column.split():
        digits = _HEXADECIMAL.fullmatch(word)
        value = int(digits[1], 16) if digits else 0
        if not 0 < value <= 0x10FFFF or 0xD800 <= value < 0xE000:
            raise DataError(
                f"{place}: `{word}` is no code point, wanted one from 1 to 10FFFF in hexadecimal",
                hint="write a rule as `SOURCE<TAB>TARGET`, such as `FF0C<TAB>2C`",
            )
        text += chr(value)
    return text


def _check_compiled(copy: str, name: str) -> None:
    """Compile rules on trial, so that a model is not learned in vain."""
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


def _field(number: int, form: int, value: bytes | int) -> bytes:
    """Serialize a field of a message."""
    key = _varint(number << 3 | form)
    if isinstance(value, int):
        return key + _varint(value)
    return key + (_varint(len(value)) if form == 2 else b"") + value


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes((*digits, value))
