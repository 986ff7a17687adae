"""What each way of calling `exo bench` does, and where its result goes."""

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from exo_cli import config
from exo_cli.bench.load import Load
from exo_cli.commands.bench_view import Measuring
from exo_cli.commands.run_view import Work
from exo_cli.commands.session import Session
from exo_cli.errors import CannotCreate, CheckFailed, InputOutput, NotFound, Unavailable
from exo_cli.schemas.bench import Bench, Comparison
from exo_cli.views import bench_table

if TYPE_CHECKING:
    from exo_cli.models.random_model import RandomModel

_HINT = "exo bench -o FILE writes such a file; exo schema bench says what it holds."


@dataclass(frozen=True, slots=True)
class Where:
    """Where a model is to run."""

    plan: Path | None
    nodes: int | None
    peers: tuple[tuple[str, int], ...]
    data_ports: tuple[int, int]
    alone: bool
    threads: int | None
    memory_bytes: int | None
    numerics: Literal["exact", "fast"] | None
    kv_bits: Literal[8] | None
    insecure: bool


def random(geometry: str, bits: int | None, group: int | None, seed: int) -> "RandomModel":
    """Random weights; a path wins where there is one."""
    from exo_cli.models.random_model import random_model

    return random_model(geometry, bits=bits, group=group, seed=seed)


def without_depth(load: Load) -> Load:
    """A server's context is not known: nothing stands before its prompts unless somebody says so."""
    return replace(load, depths=(0,))


def chain(
    session: Session, model: "str | RandomModel", where: Where, load: Load, *, depth_said: bool
) -> Bench:
    """Measure a model on a chain of ours."""
    from exo_cli.bench.measure import Job, measure
    from exo_cli.drive.driver import Settings, Telling
    from exo_cli.drive.plans import read_plan
    from exo_cli.trust.keyring import KeyringSource

    plan = read_plan(where.plan) if where.plan is not None else None
    if plan is not None and len(plan.replicas) > 1:
        session.output.note(
            f"the plan has {len(plan.replicas)} chains; what is measured is the first one alone"
        )
    private: list[str] = []
    if where.threads is not None:
        private += ["--threads", str(where.threads)]
    if where.memory_bytes is not None:
        private += ["--memory", str(where.memory_bytes)]
    settings = Settings(
        model=model,
        weights_dir=config.cache_dir() / "weights",
        nodes_dir=config.nodes_dir(),
        topology=session.topology,
        plan=plan,
        peers=where.peers,
        nodes=where.nodes,
        data_ports=where.data_ports,
        numerics=where.numerics,
        kv_bits=where.kv_bits,
        alone=where.alone,
        private=tuple(private),
    )
    job = Job(settings, load, depth_said, where.threads, where.memory_bytes)
    work, view = Work(session.output), Measuring(session.output, where.alone)
    telling = Telling(
        chosen=view.chosen, progress=work.progress, downloaded=work.downloaded, loaded=work.loaded
    )
    return asyncio.run(
        measure(job, KeyringSource(where.insecure), telling, on_round=view.round, on_gate=view.gate)
    )


def server(session: Session, url: str, model: str, key_file: Path | None, load: Load) -> Bench:
    """Measure a server that speaks OpenAI's API."""
    from exo_cli.bench.measure import measure_server
    from exo_cli.bench.openai import api_key, connected

    view = Measuring(session.output)
    key = api_key(key_file, {"EXO_API_KEY": os.environ.get("EXO_API_KEY", "")})

    async def main() -> Bench:
        async with connected(url, model=model or None, key=key) as target:
            name = target.model or "unknown"
            return await measure_server(target, name, load, notes=target.notes, on_round=view.round)

    return asyncio.run(main())


def check_places(*paths: Path | None) -> None:
    """A file that cannot be written is to be known before a long measurement, not after it."""
    from exo_cli import atomic

    for path in filter(None, paths):
        if path.exists() and not path.is_file():
            raise CannotCreate(f"cannot write {path}: it is not a regular file", hint="Name another file.")
        if not path.parent.is_dir():
            raise atomic.cannot_write(path, OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise atomic.cannot_write(path, OSError(errno.EACCES, os.strerror(errno.EACCES)))


def finish(session: Session, made: Bench, report: Path | None, output: Path | None) -> int:
    """Show it, write it, and say whether it is worth anything."""
    _write(output, lambda: msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    if report is not None:
        from exo_cli.bench.report import page

        _write(report, lambda: page(made).encode())
    if session.output.json:
        session.output.struct(made)
    else:
        session.output.rows(*bench_table.levels(made))
        for said in bench_table.words(made):
            session.output.note(said)
    if not made.gate.valid:
        differ = next(check for check in made.gate.checks if check.state == "differ")
        raise CheckFailed(
            f"the figures are invalid: {differ.said}",
            hint="The chain computes something else than it should; exo ps shows its nodes.",
        )
    if not any(level.completed for level in made.levels):
        why = next((error for level in made.levels for error in level.errors), "nothing ran")
        raise Unavailable(f"no request was answered: {why}", hint="exo discover shows who is there.")
    return 0


def compare(session: Session, paths: tuple[Path, Path], output: Path | None) -> int:
    """Two results beside each other."""
    from exo_cli.bench.compare import compare as compared

    a, b = (_read(path) for path in paths)
    found = compared(a, b, names=(paths[0].name, paths[1].name))
    _write(output, lambda: msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    if session.output.json:
        session.output.struct(found)
    else:
        session.output.rows(*bench_table.changes(found))
        for note in found.notes:
            session.output.note(note)
        session.output.note(_verdict(found))
    worse = [change for change in found.changes if change.verdict == "worse"]
    if worse:
        first = max(worse, key=lambda change: abs(change.ratio - 1))
        raise CheckFailed(
            f"{found.b} is worse than {found.a}: {first.metric} with {first.max_concurrency} at a time "
            f"is {first.ratio:.2f} times as much",
            hint="Run both again, one after the other, if something else ran on the machine.",
        )
    return 0


def links(
    session: Session,
    interfaces: tuple[tuple[str, ...], tuple[str, ...]],
    peers: tuple[tuple[str, int], ...],
    repeat: int,
    insecure: bool,
    output: Path | None,
) -> int:
    """The ways between the nodes; `interfaces` are those to use and those never to."""
    from exo_cli.bench.links import run
    from exo_cli.cluster.interfaces import Choice, check_choice
    from exo_cli.cluster.lookout import LookoutOptions
    from exo_cli.trust.keyring import KeyringSource

    choice = Choice(*interfaces)
    check_choice(choice)
    view = Measuring(session.output)
    options = LookoutOptions(
        nodes_dir=config.nodes_dir(), topology=session.topology, choice=choice, peers=peers
    )
    made = run(
        options, KeyringSource(insecure), rounds=repeat, on_found=view.found, on_progress=view.progress
    )
    _write(output, lambda: msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    if session.output.json:
        session.output.struct(made)
    else:
        session.output.rows(*bench_table.links(made))
    if not any(link.rounds for link in made.links):
        why = next((link.error for link in made.links if link.error), "no reason was given")
        raise Unavailable(f"no way could be measured: {why}", hint="exo discover --explain says more.")
    return 0


def _verdict(found: Comparison) -> str:
    if not found.changes:
        return "they have no level in common"
    return {
        "same": f"{found.b} is as fast as {found.a}, as far as their noise tells",
        "better": f"{found.b} is faster than {found.a}",
        "worse": f"{found.b} is slower than {found.a}",
        "mixed": f"{found.b} is faster than {found.a} in some, slower in others",
        "unknown": "with one repeat on a side there is no telling noise from change",
    }[found.verdict]


def _read(path: Path) -> Bench:
    from exo_cli.schemas.bench import SCHEMA
    from exo_cli.schemas.decode import MAX_DOCUMENT_BYTES, decode

    try:
        with open(path, "rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"there is no result at {path}", hint=_HINT) from error
    except OSError as error:
        raise InputOutput(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}", hint=_HINT
        ) from error
    return decode(data, Bench, schema=SCHEMA, where=str(path), hint=_HINT)


def _write(path: Path | None, data: Callable[[], bytes]) -> None:
    from exo_cli import atomic

    if path is not None:
        atomic.replace(path, data())
