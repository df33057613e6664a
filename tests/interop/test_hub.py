import pytest

from tfm_cli.errors import DataError, ResourceError
from tfm_cli.interop import hub

pytest.importorskip("huggingface_hub", reason="needs tfm-cli[hf]")


def test_hub_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(name: str, *, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)

    with pytest.raises(ResourceError, match=r"a/b: cannot be downloaded: the Hub cannot be reach"):
        hub.download("a/b", allow_pickle=False)


def test_unwritable_cache_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str, *, allow_patterns: list[str]) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)

    with pytest.raises(ResourceError, match="cannot be downloaded: No space left"):
        hub.download("a/b", allow_pickle=False)


def test_model_that_the_hub_has_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    class AbsentError(HfHubHTTPError):
        def __init__(self) -> None:
            Exception.__init__(self, "404 Client Error\nmore")

    def absent(name: str, *, allow_patterns: list[str]) -> str:
        raise AbsentError

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)

    with pytest.raises(DataError, match=r"a/b: cannot be downloaded: .*404 Client Error$"):
        hub.download("a/b", allow_pickle=False)


def test_without_the_extra_the_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)

    with pytest.raises(ResourceError, match="huggingface_hub is needed") as caught:
        hub.download("a/b", allow_pickle=False)

    assert "tfm-cli[hf]" in str(caught.value.hint)
