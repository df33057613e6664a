"""Reading of untrusted files of Marian: `.npz` archives of arrays, and YAML as plain data.

The sizes and types of an archive's arrays are checked before any of them is read. In YAML, every
scalar is a string, and anchors, aliases and tags are refused.
"""

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from tfm_cli.errors import ModelError, ResourceError, install_extra, plain_reason

MAX_YAML_BYTES = 32 << 20
_MAX_YAML_DEPTH = 8
_MAX_MEMBERS = 20_000
_MAX_TEXT_BYTES = 1 << 20
# Weights hardly compress, so a higher ratio means an archive that is made to exhaust the memory.
_MAX_COMPRESSION_RATIO = 100
_UNCHECKED_BYTES = 1 << 20  # too few for the ratio to matter
_FLOAT_BYTES = (2, 4, 8)
_MAX_HEADER_BYTES = 10_000  # NumPy's own limit
_LENGTH_FORMATS = {(1, 0): "<H", (2, 0): "<I"}  # of the header's length, by version of the format
# NumPy parses a header with Python's `ast`, which hostile headers can crash.
_ITEM = re.compile(
    r"""
    \s*+ '(?P<name> descr | fortran_order | shape)' \s*+ : \s*+
    (?: '(?P<type> [<>|=]? [A-Za-z?] [0-9]{0,9} )'
      | True | False
      | \( (?P<shape> (?: \s*+ [0-9]{1,19}+ L? \s*+ (?: , | (?=\)) ) )*+ ) \s*+ \)
    ) \s*+ (?: , \s*+ | (?=\}) )
    """,
    re.VERBOSE | re.ASCII,
)


class NpzFile:
    """An open archive of arrays, whose directory and array headers have been checked.

    Attributes:
        shapes: the shape of each array, by name.
        is_native: True if all arrays have the byte order of this machine.

    Raises:
        ModelError: the file is damaged or not an archive; or an array is pickled, has an
            unsupported type, has another size than in its header, or has an implausible
            compression ratio.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        shapes: dict[str, tuple[int, ...]] = {}
        self.is_native = True
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ModelError(
                f"{path}: is damaged or not an `.npz` archive: {plain_reason(error)}"
            ) from error
        members = self._archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise ModelError(f"{path}: has {len(members)} arrays, expected at most {_MAX_MEMBERS}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in shapes:
                raise ModelError(f"{path}: has `{name}` twice")
            shapes[name] = self._shape(member, name)
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._archive.close()

    def content(self, name: str) -> bytes:
        """Return the content of an array of bytes, of at most 1 MiB."""
        size = math.prod(self.shapes.get(name, (0,)))
        if not 0 < size <= _MAX_TEXT_BYTES:
            reason = f"has {size} bytes in `{name}`, expected 1 to {_MAX_TEXT_BYTES}"
            raise ModelError(f"{self.path}: {reason}")
        return self._array(name).tobytes()

    def copy_with(self, path: Path, name: str, content: bytes) -> None:
        """Write the arrays to another file in native byte order, with one of them replaced."""
        arrays = {other: _native(self._array(other)) for other in self.shapes if other != name}
        arrays[name] = np.frombuffer(content, dtype=np.int8)
        np.savez(path, allow_pickle=False, **arrays)

    def load(self, name: str) -> Tensor:
        """Return an array as a tensor."""
        array = self._array(name)
        return torch.from_numpy(_native(array)).reshape(array.shape)

    def _array(self, name: str) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                array: np.ndarray = archive[name]
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error,
                NotImplementedError, RuntimeError) as error:  # fmt: skip
            raise ModelError(f"{self.path}: `{name}` is damaged: {plain_reason(error)}") from error
        return array

    def _shape(self, member: zipfile.ZipInfo, name: str) -> tuple[int, ...]:
        if member.file_size > _MAX_COMPRESSION_RATIO * member.compress_size + _UNCHECKED_BYTES:
            reason = f"unpacks from {member.compress_size} to {member.file_size} bytes"
            raise ModelError(f"{self.path}: `{name}` {reason}")
        try:
            with self._archive.open(member) as stream:
                shape, dtype, header_bytes = _header(stream)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error,
                NotImplementedError, RuntimeError) as error:  # fmt: skip
            raise ModelError(
                f"{self.path}: `{name}` is damaged or not an array: {plain_reason(error)}"
            ) from error
        if dtype.hasobject or dtype.kind not in "fiub":
            reason = "is a pickle of objects" if dtype.hasobject else f"has type {dtype}"
            raise ModelError(f"{self.path}: `{name}` {reason}, expected numbers")
        if dtype.kind == "f" and dtype.itemsize not in _FLOAT_BYTES:
            reason = f"has type {dtype}, expected float16, float32 or float64"
            raise ModelError(f"{self.path}: `{name}` {reason}")
        self.is_native &= dtype.isnative
        expected = header_bytes + math.prod(shape) * dtype.itemsize
        if expected != member.file_size:
            reason = f"has {member.file_size} bytes, expected {expected} for its shape {shape}"
            raise ModelError(f"{self.path}: `{name}` {reason}")
        return shape


def _native(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return the shape and type of an array, and the size of its header.

    Raises:
        ValueError: the header is not one that NumPy writes for an array without fields.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _LENGTH_FORMATS:
        raise ValueError(f"version {version} of the format is unknown")
    length_format = _LENGTH_FORMATS[version]
    content = stream.read(struct.calcsize(length_format))
    if len(content) < struct.calcsize(length_format):
        raise ValueError("the header is cut off")
    (length,) = struct.unpack(length_format, content)
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"the header has {length} bytes, expected at most {_MAX_HEADER_BYTES}")
    text = stream.read(length).decode("latin-1")
    fields = _fields(text)
    shape = tuple(int(size.strip(" \t\nL")) for size in fields["shape"].split(",") if size.strip())
    try:
        dtype = np.dtype(fields["descr"])
    except TypeError as error:
        raise ValueError(f"the type `{fields['descr']}` is unknown") from error
    return shape, dtype, stream.tell()


def _fields(text: str) -> dict[str, str]:
    """Return the fields of a header as strings: type and shape."""
    fields: dict[str, str] = {}
    position = 1
    while text.startswith("{") and (item := _ITEM.match(text, position)):
        if item["name"] in fields:
            break
        fields[item["name"]] = next(filter(None, (item["type"], item["shape"])), "")
        position = item.end()
    rest = text[position:].strip()
    if rest != "}" or len(fields) != 3 or not fields["descr"]:
        raise ValueError(f"the header is not that of an array of numbers: {text[:60]!r}")
    return fields


def parse_yaml(content: bytes, source: str) -> Any:
    """Return a YAML document as nested strings, lists and dicts.

    `no`, `~` and `1.0` stay strings, since they may be pieces of a vocabulary.

    Args:
        content: one document in UTF-8, with or without a byte order mark.
        source: the file, for messages.

    Raises:
        ModelError: it is damaged or not YAML, has anchors, aliases or tags, or repeats a name.
        ResourceError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        hint = install_extra("marian")
        raise ResourceError("PyYAML is needed to read Marian's files", hint=hint) from error
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        events = yaml.parse(content.decode("utf-8-sig"), Loader=loader)
        documents = _YamlReader(events, yaml, source).documents()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        if "nesting depth" in reason:  # libyaml of PyYAML 6.0.4 itself refuses 1,000 levels
            reason = f"is nested deeper than {_MAX_YAML_DEPTH} levels"
            raise ModelError(f"{source}: {reason}") from error
        raise ModelError(f"{source}: is damaged or not YAML: {reason}") from error
    if len(documents) != 1:
        raise ModelError(f"{source}: has {len(documents)} YAML documents, expected 1")
    return documents[0]


class _YamlReader:
    """A builder of values from parser events; `yaml` is the module, imported only if needed."""

    def __init__(self, events: Iterable[Any], yaml: Any, source: str) -> None:
        self._events = iter(events)
        self._yaml = yaml
        self._source = source

    def documents(self) -> list[Any]:
        return [
            self._value(next(self._events), 0)
            for event in self._events
            if isinstance(event, self._yaml.DocumentStartEvent)
        ]

    def _value(self, event: Any, depth: int) -> Any:
        yaml, source = self._yaml, self._source
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ModelError(f"{source}: has anchors or aliases, expected plain YAML")
        if event.tag not in (None, "!"):  # a quoted scalar has the tag `!`
            raise ModelError(f"{source}: has the tag `{event.tag}`, expected plain YAML")
        if isinstance(event, yaml.ScalarEvent):
            return event.value
        if depth == _MAX_YAML_DEPTH:
            raise ModelError(f"{source}: is nested deeper than {_MAX_YAML_DEPTH} levels")
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(entry := next(self._events), yaml.SequenceEndEvent):
                items.append(self._value(entry, depth + 1))
            return items
        table: dict[str, Any] = {}
        while not isinstance(entry := next(self._events), yaml.MappingEndEvent):
            name = self._value(entry, depth + 1)
            if not isinstance(name, str):
                raise ModelError(f"{source}: has a name that is not a string")
            if name in table:
                raise ModelError(f"{source}: has `{name}` twice")
            table[name] = self._value(next(self._events), depth + 1)
        return table
