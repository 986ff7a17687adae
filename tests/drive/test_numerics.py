"""How a chain is asked to compute, and what is said of what came of it."""

from typing import Any, Literal

import pytest
from msgspec import structs

from exo_cli.drive.choose import Choice
from exo_cli.drive.load import LoadedStage
from exo_cli.drive.numerics import fell_back, numerics_of, ran
from exo_cli.drive.size import ModelSize
from exo_cli.drive.split import Need, plan_of
from exo_cli.schemas.plan import ModelRef
from exo_cli.schemas.topology import LoadedStage as Held
from exo_cli.schemas.topology import Node
from tests.support.records import node as record

DIGEST = "d" * 64
NEED = Need(ModelRef(name="toy", revision=None, digest=DIGEST), ModelSize((1000,) * 4, 10, 10, 8, 16384), 512)
BOTH = ("exact", "fast")


def cpu(name: str, **other: Any) -> Node:
    return record(name, backend="cpu", numerics=BOTH, kernels="avx2", **other)


def choice(*nodes: Node, says: Literal["exact", "fast"] | None = None) -> Choice:
    """Half of the model on each of two nodes."""
    plan = plan_of(NEED, [(nodes[0], (0, 2)), (nodes[1], (2, 4))], "a test")
    return Choice(structs.replace(plan, numerics=says), {node.id: node for node in nodes}, ())


def test_fast_is_the_default_where_all_that_are_used_offer_it() -> None:
    mac = record("mac")
    assert numerics_of(choice(cpu("a"), cpu("b")), None) == "fast"
    assert numerics_of(choice(cpu("a"), mac), None) == "exact"
    assert numerics_of(choice(mac, cpu("a")), None) == "exact"
    # Who answers and takes no part has no say.
    assert numerics_of(choice(cpu("a"), cpu("b"), mac), None) == "fast"
    assert numerics_of(choice(cpu("a"), structs.replace(cpu("b"), numerics=("exact",))), None) == "exact"


def test_a_person_wins_over_the_plan_and_the_plan_over_what_nodes_offer() -> None:
    two = cpu("a"), cpu("b")
    assert numerics_of(choice(*two, says="exact"), None) == "exact"
    assert numerics_of(choice(*two, says="exact"), "fast") == "fast"
    assert numerics_of(choice(cpu("a"), record("mac"), says="fast"), None) == "fast"
    assert numerics_of(choice(cpu("a"), record("mac")), "fast") == "fast"
    assert numerics_of(choice(*two), "exact") == "exact"


@pytest.mark.parametrize("called", [DIGEST, "toy"])
def test_stages_that_a_plan_keeps_there_are_taken_as_they_are(called: str) -> None:
    def holding(name: str, layers: tuple[int, int], **other: Any) -> Node:
        held = {"model": called, "layers": layers, "state": "ready", "numerics": "exact", "pinned": True}
        return cpu(name, stages=(Held(**{**held, **other}),))

    assert numerics_of(choice(holding("a", (0, 2)), holding("b", (2, 4))), None) == "exact"
    standing = choice(holding("a", (0, 2)), holding("b", (2, 4)), says="fast")
    assert numerics_of(standing, None) == "exact"
    assert numerics_of(standing, "fast") == "fast"
    for other in ({"pinned": False}, {"numerics": "fast"}, {"model": "another"}, {"layers": (1, 4)}):
        parts: dict[str, Any] = {"layers": (2, 4), **other}
        assert numerics_of(choice(holding("a", (0, 2)), holding("b", **parts)), None) == "fast"


def stage(name: str, numerics: str = "fast", reason: str = "") -> LoadedStage:
    return LoadedStage(
        node=cpu(name),
        layers=(0, 1),
        stage_id="s",
        data_port=1,
        frame_port=2,
        weights_bytes=3,
        kv_budget_bytes=4,
        fresh=True,
        numerics=numerics,
        numerics_reason=reason,
    )


def test_what_ran_is_said_in_a_word_and_why_in_a_sentence() -> None:
    fast, exact = stage("a"), stage("b", "exact")
    why = stage("c", "exact", "models of the family x")
    assert [ran(each) for each in ([fast, fast], [exact], [fast, why])] == ["fast", "exact", "mixed"]
    assert fell_back([fast]) is None
    assert fell_back([exact]) is None
    assert fell_back([why, why]) == (
        "no fast kernels for this (models of the family x): it computes exactly, as mlx-lm does"
    )
    assert fell_back([fast, why]) == (
        "no fast kernels on c (models of the family x): exact there and fast elsewhere"
    )
