"""Where plans cut, the engine can: every family whose geometry is known may be cut before every layer."""

from pathlib import Path

import mlx.core as mx
import pytest

from exo_cli.engine.loading import look
from exo_cli.engine.random_weights import unpacked
from exo_cli.models.families import FAMILIES
from exo_cli.planning.work import work_of
from tests.support.random_models import ROWS, small


def test_every_family_is_looked_at() -> None:
    assert set(ROWS) | {"gemma3_text", "mistral", "qwen2"} >= set(FAMILIES)


@pytest.mark.parametrize("family", sorted(ROWS))
def test_the_engine_allows_what_a_plan_may_say(family: str, tmp_path: Path) -> None:
    mx.disable_compile()
    model = small(family, tmp_path)
    with unpacked(model) as (directory, origin):
        allowed = look(directory, origin=origin).anatomy.allowed
    assert work_of(model.settings).cuts == (0, *allowed, model.layers)
