"""Text that is safe and fits: no control characters, no more than an encoding can say, known widths.

Pure functions on strings; knows nothing of streams, terminals or what the text is about.
"""


def visible(text: str) -> str:
    """`text` without the power to move the cursor or change colours."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    point = ord(char)
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def fitting(text: str, encoding: str | None) -> str:
    """`text` with escapes in place of what `encoding` cannot say."""
    encoding = encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def columns(text: str) -> int:
    """How wide a terminal shows `text`."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def duration_text(seconds: float) -> str:
    """A time span as a person says it."""
    for limit, unit, text in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {text}"
    return f"{seconds / 86_400:.0f} days"
