"""What `plan` is asked for, as a problem: the model's configuration, the topology, the wishes.

A model need not be here: the catalogue's are known by their configuration alone, and of others the hub is
asked for it, which is a few KB. Knows nothing of what is shown.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exo_cli.errors import BadData, NotFound, UsageProblem

if TYPE_CHECKING:
    from exo_cli.fetch.seek import Sought
    from exo_cli.planning.cluster import Cluster
    from exo_cli.planning.problem import Limits, Objective, Parallel, Problem
    from exo_cli.planning.work import Work
    from exo_cli.schemas.plan import ModelRef
    from exo_cli.schemas.topology import Topology

DEFAULT_CONTEXT = 8192
DEFAULT_PROMPT = 512


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options, parsed."""

    objective: "Objective"
    context: int | None
    concurrency: int
    prompt: int | None
    layers: tuple[str, ...]
    exclude: tuple[str, ...]
    min_nodes: int
    max_nodes: int | None
    parallel: "Parallel | None"
    only_link: str | None
    headroom: float
    kv_bits: Literal[8] | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to plan for."""

    ref: "ModelRef"
    config: Mapping[str, Any]
    repository: str
    on_disk: bool

    def work(self, repository: str | None = None) -> "Work":
        from exo_cli.planning.work import work_of

        return work_of(self.config, repository=self.repository if repository is None else repository)

    def variants(self) -> dict[str, "Work"]:
        """The same packed to fewer bits, the larger first."""
        from exo_cli.planning.work import work_of

        plain = {key: value for key, value in self.config.items() if not key.startswith("quantization")}
        now = self.work().weights_bytes
        made = {f"{bits}-bit": work_of(plain, repository=f"-{bits}bit") for bits in (8, 4)}
        return {name: work for name, work in made.items() if work.weights_bytes < 0.98 * now}


def subject(name: str, weights_dir: Path) -> Subject:
    """By the meanings that a name has everywhere; a config.json alone will do as well."""
    from exo_cli.fetch.seek import seek
    from exo_cli.fetch.stores import Stores
    from exo_cli.models import catalogue
    from exo_cli.schemas.plan import ModelRef

    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        return _from_config(path)
    stores = Stores(weights_dir)
    sought = seek(name, stores.hub)
    if sought.path is not None:
        directory = stores.open(sought.path)
        called = directory.path.name if path.is_dir() else name
        ref = ModelRef(name=called, revision=None, digest=directory.digest)
        return Subject(ref, directory.config, sought.repository or "", True)
    row = catalogue.find(name.partition("@")[0])
    if row is not None:
        return _from_row(row, name)
    if sought.repository is not None:
        return _from_hub(sought)
    raise NotFound(
        sought.missing().message,
        hint="exo plan knows the models of its catalogue (exo plan --suggest); of others it reads "
        "config.json: name the file, its directory, or a repository of the hub like org/name.",
    )


def _from_hub(sought: "Sought") -> Subject:
    """Its listing and its config.json; no weights, no tokenizer."""
    import json
    import threading

    from exo_cli.fetch.hub import LISTING_TRIES
    from exo_cli.fetch.hub_client import HubClient
    from exo_cli.fetch.hub_errors import offline
    from exo_cli.fetch.names import CONFIG
    from exo_cli.fetch.patience import Patience
    from exo_cli.fetch.seek import is_offline
    from exo_cli.models.directory import MAX_CONFIG_BYTES
    from exo_cli.schemas.plan import ModelRef

    if is_offline():
        raise offline(sought)
    client = HubClient(sought)
    patience = Patience(threading.Event(), lambda error, wait_s: None, tries=LISTING_TRIES)
    repository = client.listing(patience)
    file = repository.files[CONFIG]
    data = client.read(file, 0, min(file.size, MAX_CONFIG_BYTES), patience)
    try:
        config = json.loads(data) if file.size <= MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise BadData(
            f"the config.json of {sought.repository} is none of a model", hint="Look at it on the hub."
        )
    ref = ModelRef(name=sought.name, revision=repository.commit, digest="")
    return Subject(ref, config, repository.name, False)


def _from_row(row: Any, name: str) -> Subject:
    from exo_cli.schemas.plan import ModelRef

    return Subject(ModelRef(name=name, revision=None, digest=""), row.config, row.repository, False)


def _from_config(path: Path) -> Subject:
    import json

    from exo_cli.models.directory import MAX_CONFIG_BYTES
    from exo_cli.schemas.plan import ModelRef

    with open(path, "rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    try:
        config = json.loads(data) if len(data) <= MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise BadData(
            f"{path} is no config.json of a model", hint="Name the file that lies beside the weights."
        )
    name = path.parent.name if path.name == "config.json" and path.parent.name else path.stem
    return Subject(ModelRef(name=name, revision=None, digest=""), config, name, False)


def catalogue_subjects(weights_dir: Path) -> Iterator[Subject]:
    """Every model of the catalogue."""
    from exo_cli.fetch.seek import seek
    from exo_cli.fetch.stores import Stores
    from exo_cli.models import catalogue

    hub = Stores(weights_dir).hub
    for row in catalogue.rows():
        there = seek(row.name, hub).path is not None
        made = _from_row(row, row.name)
        yield Subject(made.ref, made.config, made.repository, there)


def read_topology(path: Path) -> "Topology":
    """The file, or standard input for `-`."""
    if str(path) != "-":
        from exo_cli.cluster.topology_file import TopologyFile

        return TopologyFile(path).read()
    from exo_cli.schemas.decode import MAX_DOCUMENT_BYTES, decode
    from exo_cli.schemas.topology import SCHEMA, Topology

    if sys.stdin is None or sys.stdin.isatty():
        raise UsageProblem(
            "--topology - reads standard input, which is a terminal",
            hint="exo discover --json | exo plan ...",
        )
    data = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
    return decode(data, Topology, schema=SCHEMA, where="standard input")


def problem_of(work: "Work", topology: "Topology", wishes: Wishes) -> "Problem":
    """Everything that the plan depends on."""
    from exo_cli.planning.cluster import cluster_of
    from exo_cli.planning.problem import Problem
    from exo_cli.wire.hello import PROTOCOL

    work = work.with_kv_bits(wishes.kv_bits)
    if wishes.context is not None and wishes.context > work.longest:
        raise UsageProblem(
            f"the model knows a context of {work.longest} tokens, not {wishes.context}",
            hint="Give a smaller --context.",
        )
    context = wishes.context or min(DEFAULT_CONTEXT, work.longest)
    _check_names(topology, [*wishes.exclude, *(text.partition("=")[0] for text in wishes.layers)])
    cluster = cluster_of(
        topology,
        format=work.format,
        protocol=PROTOCOL,
        headroom=wishes.headroom,
        exclude=wishes.exclude,
        only_link=wishes.only_link,
    )
    return Problem(
        work=work,
        cluster=cluster,
        context=context,
        streams=wishes.concurrency,
        prompt=min(wishes.prompt or DEFAULT_PROMPT, context),
        objective=wishes.objective,
        limits=_limits(cluster, work, wishes),
    )


def _limits(cluster: "Cluster", work: "Work", wishes: Wishes) -> "Limits":
    from exo_cli.planning.problem import Limits

    pins = tuple(_pin(text, cluster, work) for text in wishes.layers)
    if len({at for at, _, _ in pins}) < len(pins):
        raise UsageProblem("--layers names a node twice", hint="A node has one range of layers.")
    if wishes.max_nodes is not None and wishes.max_nodes < wishes.min_nodes:
        raise UsageProblem("--max-nodes is less than --min-nodes", hint="Leave one of them out.")
    return Limits(wishes.min_nodes, wishes.max_nodes, wishes.parallel, pins)


def _pin(text: str, cluster: "Cluster", work: "Work") -> tuple[int, int, int]:
    """`NODE=0:12`: first, and last excluded, as in JSON."""
    match = re.fullmatch(r"(.+)=(\d{1,5}):(\d{1,5})", text)
    if match is None:
        raise UsageProblem(f"'{text}' is no range for --layers", hint="Write it like --layers studio=0:12.")
    first, last = int(match[2]), int(match[3])
    wrong = [at for at in (first, last) if at not in work.cuts]
    if wrong or first >= last:
        said = f"layers {first} to {last}" if first >= last else f"layer {wrong[0]}"
        raise UsageProblem(
            f"--layers {text}: the model of {len(work.layers)} layers cannot be cut at {said}",
            hint="The first layer counts, the last does not: 0:12 are twelve layers.",
        )
    for at, place in enumerate(cluster.places):
        if match[1] in (place.id, place.name):
            return at, first, last
    why = dict(cluster.left_out).get(match[1], "is not there")
    raise UsageProblem(f"--layers: {match[1]} {why}", hint="exo discover shows who is there.")


def _check_names(topology: "Topology", names: Sequence[str]) -> None:
    known = {name for node in topology.nodes for name in (node.name, node.id)}
    for name in names:
        if name not in known:
            raise UsageProblem(f"there is no node '{name}'", hint="exo discover shows who is there.")
