"""What may text of whatever origin do to a terminal? Nothing: what would steer it is escaped."""

import re

__all__ = ["printable", "printable_json"]

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and what turns the direction of text or breaks its line."""


def printable(text: str) -> str:
    """Text with what would steer a terminal escaped as Python does, as in `\\x1b`."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_json(text: str) -> str:
    """A JSON document with what would steer a terminal escaped as JSON does: it stays the same document."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
