"""What a terminal is shown: text that cannot steer it."""

import re

# C0 but for tab and line feed, DEL, C1, and the characters that turn the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text with each control character, but tab and line feed, spelled as in `\u001b`."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
