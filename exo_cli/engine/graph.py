"""MLX's lazy graph, read: what an array that nobody computed yet is made from.

MLX can write its graph as text. A step is named there by its address, an array by what the caller says
or by letters; so arrays of interest get a step of their own (`mark`, `placeholder`) and are found again
by it. Evaluates nothing, and knows nothing of models.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import mlx.core as mx

_NAMES_A_CALL: Final = 512
"""MLX's binding takes at most 1,024 names in a call."""


def mark(array: mx.array) -> mx.array:
    """The same values behind a step that no other array has."""
    return mx.stop_gradient(array)


def placeholder(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """An array that takes no memory until somebody computes it; then it is nothing but zeros."""
    zeros = mx.zeros(shape, dtype)
    return zeros if shape else mark(zeros)  # a single number is computed at once and has no step


@dataclass(frozen=True, slots=True)
class Graph:
    """Steps, by address: what each takes, and which are marks."""

    takes: dict[int, set[int]]
    names: dict[int, str]
    steps: dict[str, int]

    def behind(self, name: str) -> set[str]:
        """The marks that this one is made from directly, without others between them."""
        todo = list(self.takes.get(self.steps[name], ()))
        seen = set(todo)
        found = set()
        while todo:
            step = todo.pop()
            other = self.names.get(step)
            if other is not None:
                found.add(other)
                continue
            for earlier in self.takes.get(step, ()):
                if earlier not in seen:
                    seen.add(earlier)
                    todo.append(earlier)
        return found

    def between_marks(self) -> dict[str, set[str]]:
        """The graph of the marks alone."""
        return {name: self.behind(name) for name in self.steps}


def read_graph(marks: Mapping[str, mx.array]) -> Graph:
    """Everything behind the marks, each of which must have come out of `mark` or `placeholder`."""
    takes: dict[int, set[int]] = {}
    steps: dict[str, int] = {}
    for chunk in _chunks(marks.items()):
        text = io.StringIO()
        # MLX's own names are letters; a character that they never have keeps ours apart.
        mx.export_to_dot(text, [array for _, array in chunk], **{f"@{name}": array for name, array in chunk})
        _add(text.getvalue(), takes, steps)
    return Graph(takes, {step: name for name, step in steps.items()}, steps)


def _chunks(items: Iterable[tuple[str, mx.array]]) -> Iterator[list[tuple[str, mx.array]]]:
    rest = iter(items)
    while chunk := list(islice(rest, _NAMES_A_CALL)):
        yield chunk


def _add(text: str, takes: dict[int, set[int]], steps: dict[str, int]) -> None:
    """Lines of interest are `"array" -> step` and `step -> "array"`."""
    made_by: dict[str, int] = {}
    inputs: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line[0] == '"':
            array, _, step = line[1:].partition('" -> ')
            inputs.append((array, step))
        elif line[0] != "{":
            step, arrow, array = line.partition(' -> "')
            if arrow:
                made_by[array[:-1]] = int(step)
    for array, step in inputs:
        maker = made_by.get(array)
        if maker is not None:
            takes.setdefault(int(step), set()).add(maker)
    steps.update((name[1:], step) for name, step in made_by.items() if name[0] == "@")
