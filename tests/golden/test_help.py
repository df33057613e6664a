import pytest

from tests.golden.regenerate import HELP_COMMANDS, help_path, help_text


@pytest.mark.parametrize("command", HELP_COMMANDS)
def test_help_is_as_it_was_read_last(command: str) -> None:
    assert help_text(command) == help_path(command).read_text(encoding="utf-8")
