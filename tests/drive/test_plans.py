"""A plan that was made before anybody had its model."""

from pathlib import Path

import pytest
from msgspec import structs

from exo_cli.drive.plans import of_this_machine
from exo_cli.errors import NotFound
from exo_cli.fetch.stores import Stores
from exo_cli.models.catalogue import POCKET_DIRECTORY
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.plan import ModelRef, Plan

PLAN = Plan(
    model=ModelRef(name="pocket", revision=None, digest=""),
    dtype="float32",
    context=256,
    concurrency=1,
    replicas=(),
    forecast=None,
    binding=None,
    reason="",
)


def test_it_is_for_the_model_of_that_name_that_is_here_now(tmp_path: Path) -> None:
    found = of_this_machine(PLAN, Stores(tmp_path))
    assert found.model.digest == ModelDirectory.open(POCKET_DIRECTORY).digest
    assert structs.replace(found, model=PLAN.model) == PLAN


def test_one_that_says_which_weights_it_means_stays_as_it_is(tmp_path: Path) -> None:
    named = structs.replace(PLAN, model=structs.replace(PLAN.model, digest="d" * 64))
    assert of_this_machine(named, Stores(tmp_path)) is named


def test_without_the_model_it_says_what_to_do(tmp_path: Path) -> None:
    missing = structs.replace(PLAN, model=structs.replace(PLAN.model, name="llama-3.2-1b"))
    with pytest.raises(NotFound, match=r"made before anybody had llama-3\.2-1b") as caught:
        of_this_machine(missing, Stores(tmp_path))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("exo fetch llama-3.2-1b")
