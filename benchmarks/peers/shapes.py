"""A geometry by its name, and where a chain of it is cut: every stage reads about as much for a token.

The head counts with the last stage; an embedding is only looked up. Knows nothing of weights.
"""

import json
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Final

from exo_cli.models.catalogue import find
from exo_cli.models.geometry import geometry

GEOMETRIES: Final = Path(__file__).parent / "geometries"


def config_of(name: str) -> dict[str, Any]:
    """By a name of the catalogue, or of a file in geometries/."""
    file = GEOMETRIES / f"{name}.json"
    if file.exists():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    row = find(name)
    if row is None:
        known = ", ".join(sorted(path.stem for path in GEOMETRIES.glob("*.json")))
        raise SystemExit(f"no geometry is called {name}; known are {known}, and exo's catalogue")
    return dict(row.config)


@cache
def cut(name: str, stages: int) -> tuple[int, ...]:
    """The bounds of the stages: 0, the cuts, the number of layers."""
    shape = geometry(config_of(name))
    layers = [sum(weight.items for weight in layer.weights.values()) for layer in shape.layers]
    head = shape.embedding_parameters if shape.is_tied else shape.head_parameters
    return even(layers, head, stages)


def even(layers: list[int], head: int, stages: int) -> tuple[int, ...]:
    """The cuts whose slowest stage is the fastest; the first of several as good."""
    count = len(layers)

    def slowest(bounds: tuple[int, ...]) -> int:
        return max(
            sum(layers[first:last]) + (head if last == count else 0) for first, last in pairwise(bounds)
        )

    inner = combinations(range(1, count), stages - 1)
    return min(((0, *cuts, count) for cuts in inner), key=slowest)
