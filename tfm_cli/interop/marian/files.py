"""An `.npz` archive whose sizes and types are known before any of it is read."""

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

from tfm_cli.errors import ModelError, ResourceError

_MAX_MEMBERS = 20_000
_MAX_TEXT_BYTES = 1 << 20
# Weights hardly shrink; what unpacks to so many times its size is made to fill the memory.
_MAX_RATIO = 100
_SMALL = 1 << 20
_FLOAT_BYTES = (2, 4, 8)
_MAX_HEADER_BYTES = 10_000  # as NumPy has it
_LENGTHS = {(1, 0): "<H", (2, 0): "<I"}  # of the header, by version of the format
# NumPy would have Python parse a header, of which some are too much for `ast` or `tokenize`.
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
    """Arrays by name; opened, its directory and the header of each array are checked.

    Raises:
        ModelError: it is torn or no archive, an array is a pickle or has an unusual type, says
            another size than it has, or unpacks to far more than the file holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        shapes: dict[str, tuple[int, ...]] = {}
        self.is_native = True  # whether each array has its bytes in the order of this machine
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ModelError(f"{path}: is torn or no `.npz` archive: {error}") from error
        members = self._archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise ModelError(f"{path}: has {len(members)} arrays, wanted at most {_MAX_MEMBERS}")
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
        """The bytes of an array of bytes, at most 1 MiB."""
        size = math.prod(self.shapes.get(name, (0,)))
        if not 0 < size <= _MAX_TEXT_BYTES:
            told = f"has {size} bytes in `{name}`, wanted 1 to {_MAX_TEXT_BYTES}"
            raise ModelError(f"{self.path}: {told}")
        return self._array(name).tobytes()

    def copy_with(self, path: Path, name: str, content: bytes) -> None:
        """Write the same arrays to another file, in native order, but for one array of bytes."""
        arrays = {other: _native(self._array(other)) for other in self.shapes if other != name}
        arrays[name] = np.frombuffer(content, dtype=np.int8)
        np.savez(path, allow_pickle=False, **arrays)

    def load(self, name: str) -> Tensor:
        """The array of a name as a tensor."""
        array = self._array(name)
        return torch.from_numpy(_native(array)).reshape(array.shape)

    def _array(self, name: str) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                array: np.ndarray = archive[name]
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error,
                NotImplementedError, RuntimeError) as error:  # fmt: skip
            raise ModelError(f"{self.path}: `{name}` is torn: {error}") from error
        return array

    def _shape(self, member: zipfile.ZipInfo, name: str) -> tuple[int, ...]:
        if member.file_size > _MAX_RATIO * member.compress_size + _SMALL:
            told = f"unpacks from {member.compress_size} to {member.file_size} bytes"
            raise ModelError(f"{self.path}: `{name}` {told}")
        try:
            with self._archive.open(member) as stream:
                shape, dtype, header_bytes = _header(stream)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error,
                NotImplementedError, RuntimeError) as error:  # fmt: skip
            raise ModelError(f"{self.path}: `{name}` is torn or no array: {error}") from error
        if dtype.hasobject or dtype.kind not in "fiub":
            told = "is a pickle of objects" if dtype.hasobject else f"has type {dtype}"
            raise ModelError(f"{self.path}: `{name}` {told}, wanted numbers")
        if dtype.kind == "f" and dtype.itemsize not in _FLOAT_BYTES:
            told = f"has type {dtype}, wanted float16, float32 or float64"
            raise ModelError(f"{self.path}: `{name}` {told}")
        self.is_native &= dtype.isnative
        wanted = header_bytes + math.prod(shape) * dtype.itemsize
        if wanted != member.file_size:
            told = f"says it has shape {shape}, which is {wanted} bytes"
            raise ModelError(f"{self.path}: `{name}` {told}, but has {member.file_size}")
        return shape


def _native(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return shape, type and own size of an array's header.

    Raises:
        ValueError: it is not one that NumPy writes of an array without fields.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _LENGTHS:
        raise ValueError(f"version {version} of the format")
    length_format = _LENGTHS[version]
    content = stream.read(struct.calcsize(length_format))
    if len(content) < struct.calcsize(length_format):
        raise ValueError("the header is cut off")
    (length,) = struct.unpack(length_format, content)
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"the header has {length} bytes, wanted at most {_MAX_HEADER_BYTES}")
    text = stream.read(length).decode("latin-1")
    fields = _fields(text)
    shape = tuple(int(size.strip(" \t\nL")) for size in fields["shape"].split(",") if size.strip())
    try:
        dtype = np.dtype(fields["descr"])
    except TypeError as error:
        raise ValueError(f"the type `{fields['descr']}` is not known") from error
    return shape, dtype, stream.tell()


def _fields(text: str) -> dict[str, str]:
    """Return type and shape of a header as they are written."""
    fields: dict[str, str] = {}
    place = 1
    while text.startswith("{") and (item := _ITEM.match(text, place)):
        if item["name"] in fields:
            break
        fields[item["name"]] = next(filter(None, (item["type"], item["shape"])), "")
        place = item.end()
    rest = text[place:].strip()
    if rest != "}" or len(fields) != 3 or not fields["descr"]:
        raise ValueError(f"the header is not one of numbers: {text[:60]!r}")
    return fields


# YAML as plain data: every scalar is a string, and nothing in it refers to anything else.

MAX_YAML_BYTES = 32 << 20
_MAX_DEPTH = 8


def parse_yaml(content: bytes, place: str) -> Any:
    """Strings, lists and dicts, as deep as a file nests them.

    `no`, `~` and `1.0` stay what they are, since they are pieces in a vocabulary.

    Args:
        content: UTF-8, with or without a mark of it; one document.
        place: what messages call the file.

    Raises:
        ModelError: it is torn or no YAML; has anchors, aliases or tags; a name stands twice.
        ResourceError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        hint = "pip install 'tfm-cli[marian]'"
        raise ResourceError("PyYAML is needed to read Marian's files", hint=hint) from error
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        events = yaml.parse(content.decode("utf-8-sig"), Loader=loader)
        documents = _Reader(events, yaml, place).documents()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())
        if "nesting depth" in told:  # libyaml of PyYAML 6.0.4 refuses 1,000 levels by itself
            told = f"{place}: is nested deeper than {_MAX_DEPTH} levels"
            raise ModelError(told) from error
        raise ModelError(f"{place}: is torn or no YAML: {told}") from error
    if len(documents) != 1:
        raise ModelError(f"{place}: has {len(documents)} YAML documents, wanted 1")
    return documents[0]


class _Reader:
    """Makes values of events; `yaml` is handed over, since it is imported only where needed."""

    def __init__(self, events: Iterable[Any], yaml: Any, place: str) -> None:
        self._events = iter(events)
        self._yaml = yaml
        self._place = place

    def documents(self) -> list[Any]:
        return [
            self._value(next(self._events), 0)
            for event in self._events
            if isinstance(event, self._yaml.DocumentStartEvent)
        ]

    def _value(self, event: Any, depth: int) -> Any:
        yaml, place = self._yaml, self._place
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ModelError(f"{place}: has anchors or aliases, wanted plain YAML")
        if event.tag not in (None, "!"):  # what stands in quotes has the tag `!`
            raise ModelError(f"{place}: has the tag `{event.tag}`, wanted plain YAML")
        if isinstance(event, yaml.ScalarEvent):
            return event.value
        if depth == _MAX_DEPTH:
            raise ModelError(f"{place}: is nested deeper than {_MAX_DEPTH} levels")
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(entry := next(self._events), yaml.SequenceEndEvent):
                items.append(self._value(entry, depth + 1))
            return items
        table: dict[str, Any] = {}
        while not isinstance(entry := next(self._events), yaml.MappingEndEvent):
            name = self._value(entry, depth + 1)
            if not isinstance(name, str):
                raise ModelError(f"{place}: has a list or a table for a name")
            if name in table:
                raise ModelError(f"{place}: has `{name}` twice")
            table[name] = self._value(next(self._events), depth + 1)
        return table
