"""What README says of `fast`, family by family and format by format, against what engines then do."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from exo_cli.engine import formats
from exo_cli.engine import stage as stages
from exo_cli.engine.cpu import recognise
from tests.support.tiny_models import Tiny

README: Final = Path(__file__).parents[3] / "README.md"
HEAD: Final = "| families | weights | `--numerics fast` |"
LAYERS: Final = 2
REAL: Final[dict[str, Any]] = {
    # What divides by as much as a real model's does, and is small.
    "num_hidden_layers": LAYERS,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


@dataclass(frozen=True)
class Case:
    family: str
    format: str
    group: int | None
    fused: bool

    def __str__(self) -> str:
        return f"{self.family}-{self.format}" + (f"-{self.group}" if self.group else "")

    @property
    def options(self) -> dict[str, Any]:
        """As mlx-lm packs it."""
        if self.format in formats.DENSE:
            return {"dtype": formats.DENSE[self.format]}
        if self.format in formats.MODES:
            group, bits = formats.MODES[self.format]
            return {"bits": bits, "group_size": group, "mode": self.format}
        assert self.group is not None, f"README names no groups for {self.format}"
        return {"bits": int(self.format.removeprefix("affine")), "group_size": self.group}


def cases() -> Iterator[Case]:
    """Of every row: each family with each format in each group that stands behind it."""
    text = README.read_text(encoding="utf-8")
    assert HEAD in text
    for line in text.partition(HEAD)[2].strip().splitlines()[1:]:
        if not line.startswith("|"):
            return
        families, weights, outcome = (cell.strip() for cell in line.strip("|").split("|"))
        assert outcome in ("fused", "falls back"), line
        for part in weights.split(";"):
            formats, _, groups = part.partition("in groups of")
            sizes: list[int | None] = [int(each) for each in re.findall(r"\d+", groups)]
            for family, format, group in product(_named(families), _named(formats), sizes or [None]):
                yield Case(family, format, group, outcome == "fused")


def _named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_what_runs_is_what_readme_says(case: Case, tiny: Tiny) -> None:
    overrides = {**REAL, **_lists(case.family)}
    directory = tiny(case.family, overrides=tuple(overrides.items()), **case.options)
    _, ready = stages.load(
        str(directory),
        layers=(0, LAYERS),
        layers_in_model=LAYERS,
        memory_bytes=1 << 30,
        progress=lambda *_: None,
        numerics="fast",
    )
    assert ready["numerics"] == ("fast" if case.fused else "exact"), ready["numerics_reason"]
    assert bool(ready["numerics_reason"]) is not case.fused


def _lists(family: str) -> dict[str, Any]:
    """Settings of a family that say something of each layer."""
    return {"layer_types": ["sliding_attention", "full_attention"]} if family == "gpt_oss" else {}


def test_every_family_that_is_fused_stands_there() -> None:
    assert {case.family for case in cases() if case.fused} >= recognise.FAMILIES
