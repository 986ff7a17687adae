"""How to sample: what the user said, else what the model's authors recommend, else greedy.

Knows nothing of how sampling is done.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from exo_cli.schemas.sampling import Sampling
from exo_cli.text.files import read_object

# Names in generation_config.json, with the values that make sense.
_RECOMMENDED: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0.0, 10.0),
    "top_p": (1e-6, 1.0),
    "top_k": (0, 1_000_000),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 100.0),
}
PENALTY_WINDOW: Final = 1024
"""How many of the last tokens a penalty looks at."""


def recommended(directory: Path) -> dict[str, float]:
    """From generation_config.json; nothing if it says that nothing is to be sampled, or is not there."""
    said = read_object(directory / "generation_config.json") or {}
    if said.get("do_sample") is False:
        return {}
    found = {name: said.get(name) for name in _RECOMMENDED}
    return {name: value for name, value in found.items() if _sensible(name, value)}  # type: ignore[misc]


def sampling(given: Mapping[str, Any], directory: Path) -> Sampling:
    """`given`: the fields of Sampling that were asked for; None where the model's word counts."""
    said = {name: value for name, value in given.items() if value is not None}
    # Whoever asks for greedy wants none of the recommendations.
    values = {**(recommended(directory) if said.get("temperature") != 0 else {}), **said}
    values.setdefault("seed", secrets.randbits(32))
    if "top_k" in values:
        values["top_k"] = int(values["top_k"])
    penalties = (
        values.get("repetition_penalty", 1.0) != 1.0,
        values.get("presence_penalty", 0.0) != 0.0,
        values.get("frequency_penalty", 0.0) != 0.0,
    )
    if any(penalties):
        values.setdefault("penalty_window", PENALTY_WINDOW)
    return Sampling(**values)


def _sensible(name: str, value: object) -> bool:
    low, high = _RECOMMENDED[name]
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
