"""YAML as plain data: every scalar is a string, and nothing in it refers to anything else."""

from collections.abc import Iterable
from typing import Any

from tfm_cli.errors import ModelError, ResourceError

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
