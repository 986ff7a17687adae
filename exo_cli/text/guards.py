"""What methods of a text and filters would make or take, known before they run.

Most of them make no more than they are given. Those that can make a lot of a little, or look at
everything many times, are refused here if the meter cannot pay for them. Names are the same for a
method (`'a'.replace(…)`) and a filter (`'a' | replace(…)`). Knows nothing of templates.
"""

import re
from collections.abc import Iterator, Sized
from typing import Any, Final

from exo_cli.text.meter import ITEM, Meter, TooMuch

_MAX_WIDTH: Final = 10_000
_MAX_LOOKS: Final = 2**30
_WIDTH: Final = re.compile(r"\d{5}")
_PERCENT_WIDTH: Final = re.compile(r"[%)][-+ #.0-9]*(\*|[0-9]{5})")

_WIDE: Final = {"center", "ljust", "rjust", "zfill", "batch", "slice", "round", "indent"}
_SPLITTING: Final = {"split", "rsplit", "splitlines", "list", "unique", "sort"}
_SLOW: Final = {"rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip", "trim"}


def guarded(
    meter: Meter, name: str, source: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, method: bool
) -> tuple[Any, tuple[Any, ...]]:
    """Refuse what would be too much; else the source and the arguments to use."""
    if name == "join":
        return _join(meter, source, args, kwargs, method)
    others = (*args, *kwargs.values())
    texts = [part for part in others if isinstance(part, str)]
    if name in _WIDE:
        _wide(meter, name, source, others)
    if name == "replace":
        old, new = (*args, *(kwargs.get(key, "") for key in ("old", "new")[len(args) :]))[:2]
        _replace(meter, _text(source), _text(old), _text(new))
    if name in _SPLITTING and isinstance(source, str):
        meter.afford(ITEM * (source.count(texts[0]) if texts and texts[0] else len(source)))
    if name in _SLOW and texts and meter.weigh(source) * max(len(text) for text in texts) > _MAX_LOOKS:
        raise TooMuch(f"{name} looks for too long a text in too long a text")
    if name == "sum" and any(isinstance(part, list | tuple) for part in (*args[1:], kwargs.get("start"))):
        raise TooMuch("sum adds numbers only")
    if name == "format":
        check_percents(_text(source))
        meter.afford((_text(source).count("%") + 1) * sum(meter.weigh(part) for part in (source, *others)))
    return source, args


def check_widths(spec: str) -> None:
    """No width or precision of five digits in what follows the colon of a replacement field."""
    if _WIDTH.search(spec) is not None:
        raise TooMuch("it formats with too large a width")


def check_percents(text: str) -> None:
    """No width or precision of five digits after a `%` or its name in brackets, and none from elsewhere."""
    if _PERCENT_WIDTH.search(text) is not None:
        raise TooMuch("it formats with too large a width")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _replace(meter: Meter, source: str, old: str, new: str) -> None:
    meter.afford(len(source) + (source.count(old) if old else len(source) + 1) * len(new))


def _wide(meter: Meter, name: str, source: Any, others: tuple[Any, ...]) -> None:
    numbers = [part for part in others if isinstance(part, int)]
    if any(abs(number) > _MAX_WIDTH for number in numbers):
        raise TooMuch(f"{name} is asked for more than {_MAX_WIDTH}")
    if name == "indent" and isinstance(source, str):
        widest = max((4, *numbers, *(len(part) for part in others if isinstance(part, str))))
        meter.afford(len(source) + (source.count("\n") + 1) * widest)


def _join(
    meter: Meter, source: Any, args: tuple[Any, ...], kwargs: dict[str, Any], method: bool
) -> tuple[Any, tuple[Any, ...]]:
    """A method's source stands between its argument's items, a filter's arguments between its source's."""
    items = next(iter(args), ()) if method else source
    if isinstance(items, Iterator):
        items = list(items)
    between = (source,) if method else (*args, *kwargs.values())
    count = len(items) if isinstance(items, Sized) else 0
    meter.afford(meter.weigh(items) + count * sum(meter.weigh(part) for part in between))
    return (source, (items, *args[1:])) if method and args else (items if not method else source, args)
