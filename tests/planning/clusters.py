"""Problems for tests of the planner: made by hand, and at random."""

import random
from dataclasses import replace
from math import inf
from typing import Any

from exo_cli.models.parts import Cache
from exo_cli.planning.cluster import Cluster, Place, Way
from exo_cli.planning.problem import Limits, Objective, Problem
from exo_cli.planning.work import Part, Work

MIB = 2**20
GB = 10**9
_OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "first-token", "balanced")


def place(name: str, gigabytes: float, speed: float = 100.0, **other: Any) -> Place:
    """`gigabytes` it may use; `speed` in GB/s."""
    size = int(gigabytes * GB)
    fields: dict[str, Any] = {
        "id": name,
        "name": name,
        "host": name,
        "backend": "metal",
        "cap_bytes": size,
        "free_bytes": size,
        "bytes_per_s": speed * 1e9,
        "flop_per_s": speed * 80e9,
        "basis": "measured",
    }
    return Place(**(fields | other))


def way(milliseconds: float = 0.15, gigabytes_per_s: float = 1.0) -> Way:
    """One way."""
    return Way(milliseconds / 1000, gigabytes_per_s * 1e9, "measured")


def cluster(*places: Place, between: Way | None = None, **ways: Way) -> Cluster:
    """`a_b=way(...)` for single ones."""
    names = [each.name for each in places]
    here = Way(0.0, inf, "measured")
    usual = between or way()
    return Cluster(
        places,
        tuple(tuple(here if a == b else ways.get(f"{a}_{b}", usual) for b in names) for a in names),
        (),
    )


def part(gigabytes: float, **other: Any) -> Part:
    size = int(gigabytes * GB)
    fields: dict[str, Any] = {"weights_bytes": size, "read_bytes": float(size), "flop": size * 3.5}
    return Part(**(fields | other))


def work(layers: int = 8, layer: float = 1.0, *, ends: float = 0.0, kv: int = 0, **other: Any) -> Work:
    """Layers all alike, sizes in GB; `kv` numbers a token and layer."""
    fields: dict[str, Any] = {
        "layers": (part(layer, cache=Cache(kv)),) * layers,
        "embedding": part(ends),
        "head": part(ends),
        "tied": False,
        "cuts": tuple(range(layers + 1)),
        "width": 4096,
        "wire_item_bytes": 4,
        "kv_item_bytes": 4,
        "format": "affine4",
        "longest": 131_072,
    }
    return Work(**(fields | other))


def problem(work: Work, cluster: Cluster, **other: Any) -> Problem:
    fields: dict[str, Any] = {"work": work, "cluster": cluster, "context": 4096, "objective": "latency"}
    return Problem(**(fields | other))


def at_random(seed: int) -> Problem:
    """A small cluster and a small model with everything uneven that can be."""
    r = random.Random(seed)
    count, nodes = r.randint(2, 7), r.randint(1, 4)
    one = _random_part(r)
    layers = tuple(one if r.random() < 0.3 else _random_part(r) for _ in range(count))
    cuts = tuple(sorted({0, count, *(at for at in range(1, count) if r.random() < 0.85)}))
    made = Work(
        layers=layers,
        embedding=_random_part(r),
        head=_random_part(r),
        tied=r.random() < 0.5,
        cuts=cuts,
        width=r.randint(64, 4096),
        wire_item_bytes=4,
        kv_item_bytes=4,
        format="affine4",
        longest=4096,
    )
    places = _random_places(r, nodes, made.weights_bytes)
    same = Way(r.uniform(1e-5, 5e-3), r.uniform(1e6, 1e10), "measured") if r.random() < 0.4 else None
    here = Way(0.0, inf, "measured")
    ways = tuple(
        tuple(here if a == b else same or _random_way(r) for b in range(nodes)) for a in range(nodes)
    )
    return Problem(
        work=made,
        cluster=Cluster(places, ways, ()),
        context=r.choice([128, 512, 4096]),
        streams=r.choice([1, 1, 2, 3, 5]),
        prompt=r.choice([16, 512, 1000]),
        objective=r.choice(_OBJECTIVES),
        limits=_random_limits(r, cuts, nodes),
    )


def _random_part(r: random.Random) -> Part:
    size = r.randint(20, 200) * MIB
    return Part(
        weights_bytes=size,
        read_bytes=size * r.choice([1.0, 0.3]),
        routed_bytes=size * r.choice([0.0, 0.6]),
        routed_share=r.choice([1.0, 0.1]),
        flop=4.0 * size * r.random(),
        attention_flop=r.random() * 1e5,
        cache=Cache(r.randint(0, 2000), r.choice([None, None, 128])),
    )


def _random_places(r: random.Random, count: int, model_bytes: int) -> tuple[Place, ...]:
    def one(number: int) -> Place:
        size = int(100 * MIB + r.random() * r.choice([0.8, 1.2, 1.8, 3.0]) * model_bytes)
        return Place(
            id=f"n{number}",
            name=f"n{number}",
            host=f"h{number}" if r.random() < 0.9 else "h",
            backend=r.choice(["cpu", "cpu", "metal"]),
            cap_bytes=size,
            free_bytes=size if r.random() < 0.5 else 2 * size,
            bytes_per_s=r.uniform(1e9, 2e10),
            flop_per_s=r.uniform(1e10, 1e12),
            basis="measured",
            step_s=r.choice([None, 0.0, 0.001]),
            batches=r.choice([(), ((4, 1.2), (8, 2.5)), ((2, 2.0),)]),
            cores=r.choice([0, 1, 2, 8]),
        )

    first = one(0)
    if r.random() < 0.3:
        return tuple(replace(first, id=f"n{at}", name=f"n{at}", host=f"h{at}") for at in range(count))
    return (first, *(one(at) for at in range(1, count)))


def _random_way(r: random.Random) -> Way:
    if r.random() < 0.08:
        return Way(inf, 0.0, "measured", "no route to host")
    return Way(r.uniform(1e-5, 5e-3), 10 ** r.uniform(6, 10), "measured")


def _random_limits(r: random.Random, cuts: tuple[int, ...], nodes: int) -> Limits:
    pins: tuple[tuple[int, int, int], ...] = ()
    musts: tuple[int, ...] = ()
    if r.random() < 0.1:
        first = r.randrange(len(cuts) - 1)
        last = r.randrange(first + 1, len(cuts))
        pins = ((r.randrange(nodes), cuts[first], cuts[last]),)
    elif r.random() < 0.1:
        musts = (r.randrange(nodes),)
    return Limits(
        min_nodes=r.choice([1, 1, 1, 2]),
        max_nodes=r.choice([None, None, 1, 2, 3]),
        parallel=r.choice([None, None, None, "pipeline", "replicas"]),
        pins=pins,
        musts=musts,
    )
