"""Waiting for a page in a browser, whose policy forbids Playwright's own `wait_for_function`."""

import time
from typing import Any

PATIENCE = 240.0  # seconds, for a busy machine


def wait_until(page: Any, expression: str) -> None:
    """Wait until a JavaScript expression is true on a page."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        time.sleep(0.02)
