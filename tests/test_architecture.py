"""The arrows between the packages point down, and a few things stand nowhere.

The rules are checked on the source, imports inside functions included; only what is imported for
type checkers alone is let through for cycles. A made-up house with every kind of fault shows that
the checks can fail.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import pytest

import exo_cli

PACKAGE = Path(exo_cli.__file__).parent

# What each part may import of exo_cli, besides itself, `errors` and the version. What a part may
# import, those above it may too: the arrows point down, they do not stop after one floor.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "atomic": set(),
    "config": set(),
    "schemas": set(),
    "text": set(),
    "trust": {"schemas", "atomic"},
    "models": {"schemas", "atomic"},
    "wire": {"trust", "schemas"},
    "cluster": {"wire", "trust", "models", "schemas", "atomic"},
    "fetch": {"wire", "trust", "models", "schemas", "atomic"},
    "planning": {"models", "schemas"},
    "engine": {"models", "schemas", "wire"},
    "shard": {"cluster", "fetch", "wire"},
    "drive": {"wire", "text", "planning", "cluster", "fetch"},
    "api": {"drive"},
    "bench": {"drive", "plain"},
    "rdma": {"wire"},
    "views": {"schemas", "plain"},
    "output": {"schemas", "plain"},
    "plain": set(),
    "commands": {
        *("output", "config", "views", "shard", "cluster", "fetch", "planning", "drive", "api", "bench"),
        *("rdma", "trust", "models", "text", "wire", "schemas"),
    },
    "cli": {"commands", "output", "config"},
    "__main__": {"cli", "commands"},
    "__init__": set(),
}
# Single arrows that go beside the rule, each with its reason.
ALSO = {
    ("views", "cluster.advice"): "pure: from a topology to lines; it would stand in views but for the JSON",
    ("trust.keyring", "config"): "where the key files lie",
}
# The frames are the part of the wire that the engine may know.
ENGINE_WIRE = {"frames", "tensors", "tensor", "exo_pb2"}
# The engine process is the only one that imports MLX, and its main the only one that imports the engine.
ENGINE_USERS = {f"shard.{name}" for name in ("worker", "thread", "ring", "flows", "translate")}
"""The modules of the engine process."""
TERMINAL = {"commands", "output", "cli", "__main__", "views"}
EDGES = {"cli", "shard.thread"}
"""Modules at the edge of a process, where any exception has to become an answer."""


@dataclass(frozen=True, slots=True)
class Module:
    name: str
    """Within the package: `cluster.beacon`, `cluster` for its __init__, `__init__` for the root's."""
    tree: ast.Module
    source: str

    @property
    def part(self) -> str:
        return self.name.split(".")[0]


def modules(package: Path) -> dict[str, Module]:
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = list(path.relative_to(package).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        source = path.read_text(encoding="utf-8")
        found[".".join(parts)] = Module(".".join(parts), ast.parse(source), source)
    return found


def imports(module: Module, known: dict[str, Module], *, for_types: bool = True) -> Iterator[str]:
    """Full names of what is imported: `exo_cli.wire.frames`, `mlx.core`; relative imports are not used."""
    skipped: set[ast.AST] = set()
    if not for_types:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped.update(inner for part in node.body for inner in ast.walk(part))
    for node in ast.walk(module.tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                "." * node.level + (node.module or "") if node.level else name for name in _names(node, known)
            )
        elif _is_import_call(node) and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value)


def _is_import_call(node: ast.AST) -> TypeGuard[ast.Call]:
    if not isinstance(node, ast.Call) or not node.args:
        return False
    return ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")


def _names(node: ast.ImportFrom, known: dict[str, Module]) -> Iterator[str]:
    base = node.module or ""
    for alias in node.names:
        full = f"{base}.{alias.name}"
        yield full if full.removeprefix("exo_cli.") in known else base


def ours(name: str, known: dict[str, Module]) -> str | None:
    if name == "exo_cli":
        return "__init__"
    inner = name.removeprefix("exo_cli.")
    return inner if inner != name and inner in known else None


def allowed(part: str) -> set[str]:
    reached: set[str] = set()
    todo = set(ARROWS[part])
    while todo:
        lower = todo.pop()
        reached.add(lower)
        if part != "engine" and lower != "engine":
            todo |= ARROWS[lower] - reached
    return reached | {part, "errors", "__init__"}


def faults(package: Path) -> list[str]:
    """Every line of the rules that is broken."""
    known = modules(package)
    found = [
        f"{part} has no place in the house"
        for part in {module.part for module in known.values()} - set(ARROWS)
    ]
    if found:
        return found
    for module in known.values():
        for name in imports(module, known):
            found += _import_faults(module, name, known)
        found += _source_faults(module)
    return [*found, *cycles(known)]


def _import_faults(module: Module, name: str, known: dict[str, Module]) -> Iterator[str]:
    if name.startswith("."):
        yield f"{module.name} has the relative import {name}"
    target = ours(name, known)
    top = name.split(".")[0]
    if target is not None:
        part = target.split(".")[0]
        may = allowed(module.part) | ({"engine"} if module.name in ENGINE_USERS else set())
        if (module.name, target) in ALSO or (module.part, target) in ALSO:
            return
        if part not in may:
            yield f"{module.name} imports {target}"
        elif (
            module.part == "engine" and part == "wire" and target.split(".")[-1] not in ENGINE_WIRE | {"wire"}
        ):
            yield f"{module.name} imports {target}, and the engine knows only the frames"
    elif top == "exo_cli":
        yield f"{module.name} imports {name}, which is not there"
    if top in ("mlx", "mlx_lm") and module.part != "engine":
        yield f"{module.name} imports {name}, and only the engine may"
    if top in ("typer", "click", "rich") and module.part not in TERMINAL:
        yield f"{module.name} imports {name}, and core packages know no terminal"
    if top == "typer" and module.part == "views":
        yield f"{module.name} imports {name}, and views only draw"
    if top in ("pickle", "cPickle", "dill", "marshal", "shelve", "yaml"):
        yield f"{module.name} imports {name}"


def _source_faults(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec")
        ):
            yield f"{module.name}:{node.lineno} calls {node.func.id}"
        if isinstance(node, ast.ExceptHandler) and module.name not in EDGES and _is_broad(node):
            yield f"{module.name}:{node.lineno} catches everything"
    if "BLE001" in module.source and module.name not in EDGES:
        yield f"{module.name} switches BLE001 off"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {ast.unparse(item).split(".")[-1] if item is not None else "BaseException" for item in caught}
    passes_on = any(isinstance(node, ast.Raise) and node.exc is None for node in handler.body)
    return bool(names & {"Exception", "BaseException"}) and not passes_on


def cycles(known: dict[str, Module]) -> list[str]:
    """Modules that reach themselves, imports for type checkers left out."""
    graph = {
        name: {target for full in imports(module, known, for_types=False) if (target := ours(full, known))}
        - {name}
        for name, module in known.items()
    }
    while True:
        leaves = {name for name, targets in graph.items() if not targets}
        if not leaves:
            break
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    # What is left imports a cycle or is in one: keep those that reach themselves.
    return [f"{name} reaches itself" for name in sorted(graph) if name in _reached(graph, name)]


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    todo = set(graph[start])
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo |= graph.get(name, set())
    return found


def test_the_house_stands() -> None:
    assert faults(PACKAGE) == []


def test_the_edges_are_few_and_real() -> None:
    known = modules(PACKAGE)
    for name in EDGES:
        handlers = [node for node in ast.walk(known[name].tree) if isinstance(node, ast.ExceptHandler)]
        assert sum(_is_broad(handler) for handler in handlers) == 1, name


def test_every_exception_is_needed() -> None:
    known = modules(PACKAGE)
    used = {
        (who, target)
        for module in known.values()
        for full in imports(module, known)
        if (target := ours(full, known))
        for who in (module.name, module.part)
    }
    assert set(ALSO) <= used


def test_every_module_says_what_it_is() -> None:
    generated = ("wire.exo_pb2", "wire.exo_pb2_grpc")
    silent = [
        name
        for name, it in modules(PACKAGE).items()
        if not ast.get_docstring(it.tree) and name not in generated
    ]
    assert silent == []


HOUSE = {
    "__init__.py": "",
    "errors.py": "import os",
    "output.py": "import rich",
    "cli.py": "from exo_cli.commands import discover\ntry:\n    pass\nexcept Exception:\n    pass",
    "commands/__init__.py": "",
    "commands/discover.py": "import typer\ndef f():\n"
    "    from exo_cli.cluster import beacon\n    from exo_cli.views import table",
    "cluster/__init__.py": "",
    "cluster/beacon.py": "from exo_cli.wire import frames\nfrom exo_cli.trust.keys import K",
    "wire/__init__.py": "",
    "wire/frames.py": "from exo_cli import __version__",
    "wire/channels.py": "",
    "trust/__init__.py": "",
    "trust/keys.py": "from exo_cli.schemas import key",
    "schemas/__init__.py": "",
    "schemas/key.py": "import msgspec",
    "views/__init__.py": "",
    "views/table.py": "import rich.table\nfrom exo_cli.schemas import key",
    "engine/__init__.py": "",
    "engine/stage.py": "import mlx.core\nfrom exo_cli.wire import frames",
    "shard/__init__.py": "",
    "shard/worker.py": "from exo_cli.engine import stage",
}
BROKEN = {
    "schemas/key.py": ("import exo_cli.trust.keys", "schemas.key imports trust.keys"),
    "trust/keys.py": ("def f():\n    from exo_cli.wire import frames", "trust.keys imports wire.frames"),
    "wire/frames.py": ("from exo_cli.cluster.beacon import B", "wire.frames imports cluster.beacon"),
    "cluster/beacon.py": ("from exo_cli.output import Output", "cluster.beacon imports output"),
    "cluster/__init__.py": ("import typer", "cluster imports typer, and core packages know no terminal"),
    "trust/__init__.py": (
        "import rich.table",
        "trust imports rich.table, and core packages know no terminal",
    ),
    "views/table.py": ("from exo_cli.cluster import beacon", "views.table imports cluster.beacon"),
    "shard/__init__.py": ("def f():\n    import exo_cli.engine.stage", "shard imports engine.stage"),
    "commands/discover.py": ("from exo_cli.engine.stage import S", "commands.discover imports engine.stage"),
    "engine/stage.py": (
        "from exo_cli.wire.channels import C",
        "engine.stage imports wire.channels, and the engine",
    ),
    "shard/worker.py": ("from mlx import core", "shard.worker imports mlx, and only the engine may"),
    "wire/channels.py": ("import pickle", "wire.channels imports pickle"),
    "wire/__init__.py": ("import yaml", "wire imports yaml"),
    "commands/__init__.py": ("eval('1')", "commands:1 calls eval"),
    "views/__init__.py": ("def f():\n    exec('1')", "views:2 calls exec"),
    "schemas/__init__.py": (
        "try:\n    pass\nexcept (OSError, Exception):\n    pass",
        "schemas:3 catches everything",
    ),
    "engine/__init__.py": ("x = 1  # noqa: BLE001", "engine switches BLE001 off"),
    "errors.py": ("from . import output", "errors has the relative import ."),
    "output.py": ("from exo_cli.nowhere import x", "output imports exo_cli.nowhere, which is not there"),
    "strange/__init__.py": ("", "strange has no place in the house"),
}


def build(root: Path, changes: dict[str, str]) -> Path:
    for name, source in {**HOUSE, **changes}.items():
        path = root / "exo_cli" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root / "exo_cli"


def test_a_sound_house_has_no_faults(tmp_path: Path) -> None:
    assert faults(build(tmp_path, {})) == []


@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_is_found(name: str, tmp_path: Path) -> None:
    source, expected = BROKEN[name]
    assert any(fault.startswith(expected) for fault in faults(build(tmp_path, {name: source})))


def test_a_cycle_is_found_also_within_a_package_and_inside_functions(tmp_path: Path) -> None:
    changes = {
        "cluster/beacon.py": "from exo_cli.cluster import links",
        "cluster/links.py": "def f():\n    from exo_cli.cluster.beacon import B",
    }
    assert faults(build(tmp_path, changes)) == [
        "cluster.beacon reaches itself",
        "cluster.links reaches itself",
    ]


def test_an_import_for_type_checkers_closes_no_cycle(tmp_path: Path) -> None:
    changes = {
        "cluster/beacon.py": "from exo_cli.cluster import links",
        "cluster/links.py": "if TYPE_CHECKING:\n    from exo_cli.cluster.beacon import B",
    }
    assert faults(build(tmp_path, changes)) == []
