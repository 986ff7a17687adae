"""What one template may still use: steps, characters, seconds.

A step is a pass of a loop, a call, a filter, a comparison or a piece of output. Characters are
charged for every text and list that is made. Nested lists weigh all that they would print, however
often the same list stands in them. Knows nothing of Jinja's templates beyond its class for errors.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from jinja2 import TemplateRuntimeError
from jinja2.runtime import LoopContext

MAX_STEPS: Final = 1_000_000
MAX_SECONDS: Final = 10.0
MIN_ALLOWANCE: Final = 32 * 1024 * 1024
ALLOWANCE_PER_CHARACTER: Final = 64
"""A template may look at each character of its input so many times, beside the least allowance."""
ITEM: Final = 8
"""A place in a list costs as much as so many characters."""

_MAX_WHOLE: Final = 2**60


class TooMuch(TemplateRuntimeError):
    """The template wants more than it may have."""


class Meter:
    """What one rendering may still use."""

    def __init__(self, allowance: int, clock: Callable[[], float]) -> None:
        self._characters = allowance
        self._most = allowance
        self._steps = MAX_STEPS
        self._clock = clock
        self._end_s = clock() + MAX_SECONDS
        # The objects are kept, so that no other gets their id.
        self._known: dict[int, tuple[object, int]] = {}

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise TooMuch(f"it takes more than {MAX_STEPS} steps")
        if self._clock() > self._end_s:
            raise TooMuch(f"it takes more than {MAX_SECONDS:.0f} seconds")

    def charge(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise TooMuch(f"it makes more than {self._most} characters")

    def afford(self, characters: int) -> None:
        """Raise before something is made that could not be paid."""
        if characters > self._characters:
            raise TooMuch(f"it makes more than {self._most} characters")

    def made(self, value: Any) -> Any:
        """Charge for a new value; an iterator is charged as it goes."""
        if isinstance(value, str | bytes | list | tuple | dict):
            self.charge(len(value) * (1 if isinstance(value, str | bytes) else ITEM))
            self.weigh(value)
        elif type(value) is int:
            self.weigh(value)
        elif isinstance(value, Iterator) and not isinstance(value, LoopContext):
            return self._metered(value)
        return value

    def weigh(self, value: object) -> int:
        """How many characters and items it holds, written out; raises if that is too much."""
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, int):
            if abs(value) >= _MAX_WHOLE:
                raise TooMuch("it makes a number of more than 60 bits")
            return 1
        if isinstance(value, dict):
            return self._weigh_items(value, [*value, *value.values()])
        if isinstance(value, list | tuple | set | frozenset):
            return self._weigh_items(value, value)
        if isinstance(value, type({}.items()) | type({}.values()) | type({}.keys())):
            return self._weigh_items(value, list(value))
        return 1

    def _weigh_items(self, value: object, items: Iterable[object]) -> int:
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        weight = 1 + sum(self.weigh(item) for item in items)
        if weight > self._most:
            raise TooMuch(f"it makes a list of more than {self._most} characters")
        self._known[id(value)] = (value, weight)
        return weight

    def _metered(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value
