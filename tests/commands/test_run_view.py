"""What `exo run` says before the first token and after the last one."""

import io
import json
from typing import Any, cast

from exo_cli.commands.run_view import Show, Work
from exo_cli.drive.load import LoadedStage, Progress
from exo_cli.output import Output
from tests.support.records import node as record

WHY = "models of the family x"


def words(**options: Any) -> tuple[Output, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Output(stdout=out, stderr=err, **options), out, err


def stage(name: str, numerics: str, reason: str = "") -> LoadedStage:
    return LoadedStage(
        node=record(name),
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


def test_compiling_is_said_to_everybody_once_and_the_rest_to_whoever_asks() -> None:
    output, _, err = words()
    work = Work(output)
    for doing in ("read", "compile kernels", "compile kernels", "pack", "warm-up"):
        work.progress(Progress("a", doing, 0, 1))
    work.progress(Progress("b", "compile kernels", 0, 1))
    assert err.getvalue().splitlines() == [
        f"{name}: compiling kernels for this processor, some seconds, once" for name in ("a", "b")
    ]
    output, _, err = words(verbose=1)
    Work(output).progress(Progress("a", "pack", 1, 2))
    assert "a: packing weights" in err.getvalue()


def test_a_chain_that_fell_back_is_told_once_in_one_line() -> None:
    output, _, err = words()
    work = Work(output)
    work.loaded((stage("a", "fast"), stage("b", "fast")))
    assert err.getvalue() == ""
    work = Work(output)
    for _ in range(2):
        work.loaded((stage("a", "exact", WHY), stage("b", "exact", WHY)))
    assert err.getvalue() == f"no fast kernels for this ({WHY}): it computes exactly, as mlx-lm does\n"


def test_one_that_goes_on_otherwise_says_so() -> None:
    output, _, err = words()
    work = Work(output)
    for numerics in ("fast", "fast", "exact"):
        work.loaded((stage("a", numerics),))
    assert err.getvalue() == "from here on it computes exact, not fast\n"


class Said:
    """As much of an answer as is counted."""

    prompt_tokens, cached_tokens, generated_tokens = 3, 0, 2


def test_the_last_line_says_how_it_was_computed_and_why() -> None:
    output, out, _ = words(json=True)
    mixed = stage("a", "fast"), stage("b", "exact", WHY)
    Show(output).summary(cast(Any, Said), "stop", mixed)
    Show(output).summary(cast(Any, Said), "stop", mixed[:1])
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["numerics"], first["numerics_reason"]) == ("mixed", WHY)
    assert (second["numerics"], second["numerics_reason"]) == ("fast", None)
    assert Show(output).stats(cast(Any, Said), mixed).endswith("layers a 0-0, b 0-0; numerics mixed")
