import logging
from collections.abc import Iterator

import pytest

from tfm_cli import console

logger = logging.getLogger("tfm_cli.some.module")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    package = logging.getLogger("tfm_cli")
    before = (package.handlers, package.propagate, package.level)
    yield
    package.handlers, package.propagate, package.level = before


def test_facts_stand_alone_and_warnings_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup()

    logger.debug("unsaid")
    logger.info("read %d lines", 3)
    logger.warning("line %d is long", 2)
    logger.error("no more")

    out, err = capsys.readouterr()
    assert out == ""
    assert err == "read 3 lines\nwarning: line 2 is long\nerror: no more\n"


def test_quiet_leaves_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup(console.QUIET)

    logger.info("unsaid")
    logger.warning("said")

    assert capsys.readouterr().err == "warning: said\n"


def test_second_setup_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup(console.QUIET)
    console.setup()

    logger.info("once")

    assert capsys.readouterr().err == "once\n"


def test_loggers_of_others_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)

    console.setup()

    assert (root.handlers, root.level) == before
    assert logging.getLogger("tfm_cli").propagate is False


def test_lines_go_to_whatever_stderr_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup()
    with capsys.disabled():
        pass  # stderr is another object from here on

    logger.info("found")

    assert capsys.readouterr().err == "found\n"


def test_quoted_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup()

    logger.warning("%s: cannot be read", "a\x1b[2J\u202eb")

    assert capsys.readouterr().err == "warning: a\\u001b[2J\\u202eb: cannot be read\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"),
        (3599.6, "1h00m"), (7830, "2h10m"), (360_000, "100h00m"),
    ],
)  # fmt: skip
def test_durations_are_written_as_a_person_does(seconds: float, text: str) -> None:
    assert console.seconds_text(seconds) == text


def test_numbers_of_things_are_told_as_people_do() -> None:
    result = [console.counted(count, "pair") for count in (0, 1, 2)]

    assert result == ["0 pairs", "1 pair", "2 pairs"]
    assert console.counted(3, "batch", "batches") == "3 batches"
