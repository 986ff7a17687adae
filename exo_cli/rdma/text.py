"""Bytes that a tool printed, as lines that may be believed, or why they may not.

A text that is cut off, of another encoding or of another program is `Unreadable`: a reader concludes
nothing from it. Knows nothing of any particular tool.
"""

import re

MAX_LINES = 20_000
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Unreadable(Exception):
    """This is not what the tool prints; says why in a few words."""


def decoded(data: bytes) -> str:
    """The text of bytes in UTF-8, with no control characters in it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("it is not UTF-8") from None
    if _CONTROL.search(text):
        raise Unreadable("it holds control characters")
    return text


def lines(data: bytes, *, empty: bool = False) -> list[str]:
    """Its lines without their ends; `empty` says that there may be none."""
    text = decoded(data)
    if not text.strip():
        if empty:
            return []
        raise Unreadable("it is empty")
    if not text.endswith("\n"):
        raise Unreadable("it is cut off")
    found = [line.rstrip() for line in text.split("\n")]
    found.pop()
    if len(found) > MAX_LINES:
        raise Unreadable("it is too long")
    return found
