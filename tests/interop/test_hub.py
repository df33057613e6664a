import json

import pytest

from tfm_cli.errors import DataError, ResourceError
from tfm_cli.interop import source_files

pytest.importorskip("huggingface_hub", reason="needs tfm-cli[hf]")


def test_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(name: str, *, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)

    with pytest.raises(ResourceError, match=r"a/b: cannot be downloaded: the Hub cannot be reach"):
        source_files.download("a/b", allow_pickle=False)


def test_unwritable_cache_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str, *, allow_patterns: list[str]) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)

    with pytest.raises(ResourceError, match="cannot be downloaded: No space left"):
        source_files.download("a/b", allow_pickle=False)


def test_model_missing_from_the_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    class AbsentError(HfHubHTTPError):
        def __init__(self) -> None:
            Exception.__init__(self, "404 Client Error\nmore")

    def absent(name: str, *, allow_patterns: list[str]) -> str:
        raise AbsentError

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)

    with pytest.raises(DataError, match=r"a/b: cannot be downloaded: .*404 Client Error$"):
        source_files.download("a/b", allow_pickle=False)


def test_missing_huggingface_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)

    with pytest.raises(ResourceError, match="huggingface_hub is not installed") as caught:
        source_files.download("a/b", allow_pickle=False)

    assert "pip install 'huggingface_hub>=" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Helsinki-NLP/opus-mt-en-de", True),
        ("a/b_1.c", True),
        (f"a/{'b' * 96}", True),
        (f"a/{'b' * 97}", False),
        ("a/b..c", False),
        ("a/b--c", False),
        ("a/b.git", False),
        ("a/-b", False),
        ("a/b-", False),
        ("a/.b", False),
        ("a-/b", False),
        ("a/b/c", False),
    ],
)
def test_names_follow_the_rules_of_the_hub(name: str, is_one: bool) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if is_one:
        validate_repo_id(name)
    else:
        with pytest.raises(HFValidationError):
            validate_repo_id(name)
    assert source_files.is_hub_name(name) is is_one


def test_name_that_the_library_refuses_is_reported() -> None:
    with pytest.raises(DataError, match=r"a/b..c: cannot be downloaded: Cannot have -- or \.\."):
        source_files.download("a/b..c", allow_pickle=False)


@pytest.mark.parametrize(
    "error", [json.JSONDecodeError("Expecting value", "<html>", 0), TypeError("no list"),
              KeyError("sha"), AttributeError("get")],
)  # fmt: skip
def test_server_that_is_not_the_hub_is_reported(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def answered(name: str, *, allow_patterns: list[str]) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", answered)

    with pytest.raises(ResourceError, match=r"the server that answered is not the Hub"):
        source_files.download("a/b", allow_pickle=False)


def test_broken_connection_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    client_error: type[Exception] = HfHubHTTPError.__mro__[1]

    def broken(name: str, *, allow_patterns: list[str]) -> str:
        raise client_error("the peer closed the connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)

    with pytest.raises(ResourceError, match="cannot be downloaded: the peer closed"):
        source_files.download("a/b", allow_pickle=False)
