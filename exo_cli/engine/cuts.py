"""Where a model may be cut, found by looking at its own forward pass without computing it.

The model runs a few times on placeholders; nothing is evaluated. Each layer's outputs and each cache's
contents get a mark in MLX's lazy graph, so that what any later array is made from can be followed
exactly: a cut before layer `c` is allowed if everything after it is made from the outputs of layer
`c - 1`, the token ids, and weights that are in no earlier layer. That finds shared caches, layers that
read another layer's keys, and streams carried around the layers, whatever the family. It also tells
which outputs are worth sending and which weights beside the layers (embedding, norm, head) a stage
needs. What it cannot see is a decision made in Python on the tensors' values; the families that make
such are listed here. Knows nothing of files, nor of how a stage is run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from exo_cli.engine.graph import mark, placeholder, read_graph
from exo_cli.engine.payload import Const, Leaf, Payload, Slot, Template, flatten, unflatten
from exo_cli.errors import BadData

SINGLE_STAGE: Final = {
    "dbrx": "its layers choose experts in Python while they compute",
    "phixtral": "its layers choose experts in Python while they compute",
}
"""Families whose forward pass evaluates tensors: what they depend on shows only while they run."""

_FIRST, _OTHER, _CHUNK, _STEP = (2, 5), (3, 4), (2, 3), (2, 1)
"""Batch and tokens of the passes: from nothing twice, then a second chunk and a decode step."""
_THRESHOLDS: Final = ("index_topk",)
"""Config keys that say from how many tokens on a layer does something else."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The place before layer `at`: allowed with what is sent there, or refused with a reason."""

    at: int
    payload: Payload | None
    reason: str | None

    @property
    def allowed(self) -> bool:
        return self.payload is not None


@dataclass(frozen=True)
class Anatomy:
    """What one model is made of, as far as cutting it goes. Layers, caches and cuts count from 0."""

    model_type: str
    n_layers: int
    layer_paths: tuple[str, ...]
    """Where each layer's weights are: `model.layers.3`."""
    cache_kinds: tuple[str, ...]
    """One per cache of the unsplit model; caches of one kind are masked alike."""
    caches_of: tuple[tuple[int, ...], ...]
    """Per layer, which caches it is given. Caches that no layer is given belong to stage 0."""
    cuts: tuple[Cut, ...]
    weights: tuple[str, ...]
    """Every weight's path."""
    _graphs: tuple["_Traced", ...] = field(repr=False, default=())

    @property
    def allowed(self) -> tuple[int, ...]:
        return tuple(cut.at for cut in self.cuts if cut.allowed)

    def check_range(self, first: int, last: int) -> None:
        """Refuses layers `first` to `last` (excluded) if either end is no allowed cut."""
        if not 0 <= first < last <= self.n_layers:
            raise BadData(f"layers {first} to {last} of a model that has {self.n_layers}")
        for at in (first, last):
            if 0 < at < self.n_layers and not self.cuts[at - 1].allowed:
                raise BadData(
                    f"{self.model_type} cannot be cut before layer {at}: {self.cuts[at - 1].reason}",
                    hint=self._hint(at),
                )

    def payload_at(self, at: int) -> Payload:
        """What crosses the cut before layer `at`."""
        payload = self.cuts[at - 1].payload
        assert payload is not None, at
        return payload

    def caches(self, first: int, last: int) -> tuple[int, ...]:
        """The caches that a stage keeps, by their place in the unsplit model's list."""
        given = {cache for layer in range(first, last) for cache in self.caches_of[layer]}
        if first == 0:
            claimed = {cache for layer in self.caches_of for cache in layer}
            given |= set(range(len(self.cache_kinds))) - claimed
        return tuple(sorted(given))

    def stage_weights(self, first: int, last: int) -> frozenset[str]:
        """The weights that a stage needs: all of its layers', and of the others those it is made from."""
        self.check_range(first, last)
        owner = self.owners()
        mine = {path for path, layer in owner.items() if layer is not None and first <= layer < last}
        if (first, last) == (0, self.n_layers):
            return frozenset(owner)
        reached = {self.weights[int(name[1:])] for name in self._reach(first, last) if name[0] == "p"}
        return frozenset(mine | {path for path in reached if owner[path] is None})

    def owners(self) -> dict[str, int | None]:
        """Every weight's layer; None for those beside the layers."""
        by_path = {f"{path}.": layer for layer, path in enumerate(self.layer_paths)}
        depth = max((path.count(".") for path in by_path), default=0)
        found: dict[str, int | None] = {}
        for weight in self.weights:
            parts = weight.split(".")
            prefixes = (".".join(parts[:n]) + "." for n in range(1, min(len(parts), depth) + 1))
            found[weight] = next((by_path[prefix] for prefix in prefixes if prefix in by_path), None)
        return found

    def _reach(self, first: int, last: int) -> set[str]:
        return {name for traced in self._graphs for name in traced.made_from(self, first, last)}

    def _hint(self, at: int) -> str:
        if not self.allowed:
            return "Run this model in one stage."
        near = sorted(self.allowed, key=lambda cut: abs(cut - at))[:3]
        return f"The nearest allowed cuts are before layers {', '.join(map(str, sorted(near)))}."


def survey(model: nn.Module, *, model_type: str, config: Mapping[str, Any] | None = None) -> Anatomy:
    """Looks at a model whose weights are placeholders. Gives the model other placeholders."""
    layers = list(model.layers)
    weights = _mark_weights(model)
    caches = make_prompt_cache(model)
    anatomy = Anatomy(
        model_type=model_type,
        n_layers=len(layers),
        layer_paths=_paths(model, layers),
        cache_kinds=tuple(str(kind_of(cache)) for cache in caches),
        caches_of=((),) * len(layers),
        cuts=(),
        weights=tuple(weights),
    )
    reason = SINGLE_STAGE.get(model_type)
    if reason is None and len({id(layer) for layer in layers}) != len(layers):
        reason = "some of its layers are one and the same"
    if reason is None:
        passes, reason = _passes(model, layers, list(weights.values()), config or {})
        if passes is not None:
            return _judge(anatomy, passes)
    every = tuple(range(len(caches)))
    cuts = tuple(Cut(at, None, reason) for at in range(1, len(layers)))
    return _with(anatomy, cuts=cuts, caches_of=(every,) * len(layers))


def kind_of(cache: object) -> tuple[object, ...]:
    """What decides how a cache is masked: its class, its window, how many arrays it holds."""
    inner = getattr(cache, "caches", None)
    if inner is not None:
        return ("CacheList", *(kind_of(each) for each in inner))
    window = getattr(cache, "max_size", None), getattr(cache, "chunk_size", None)
    return (type(cache).__name__, *window, len(getattr(cache, "cache", ())))


# ------------------------------------------------------------------------- looking


@dataclass(slots=True)
class _Visit:
    layer: int
    caches: tuple[int, ...]
    template: Template
    leaves: list[mx.array]


@dataclass(frozen=True, slots=True)
class _Traced:
    """One pass: its graph, and the shape of everything that the layers gave."""

    made_of: dict[str, set[str]]
    """Mark to the marks that it is made from: see `_trace` for their names."""
    visits: tuple[_Visit, ...]
    batch: int
    tokens: int
    live: dict[int, frozenset[int]] = field(default_factory=dict)
    """Per cut, the outputs that later layers are made from."""

    def made_from(self, anatomy: Anatomy, first: int, last: int) -> set[str]:
        """What the stage's results are made from, up to what it receives."""
        received = f"o{first - 1}_"
        todo = self.results(anatomy, first, last)
        seen = set(todo)
        while todo:
            for name in self.made_of[todo.pop()]:
                if name not in seen:
                    seen.add(name)
                    if name[0] in "ok" and not name.startswith(received):
                        todo.append(name)
        return seen

    def results(self, anatomy: Anatomy, first: int, last: int) -> list[str]:
        kept = [f"k{cache}_" for cache in anatomy.caches(first, last)]
        names = [name for name in self.made_of if name.startswith(tuple(kept))] if kept else []
        if last == anatomy.n_layers:
            return [*names, "k_logits"]
        return [*names, *(f"o{last - 1}_{leaf}" for leaf in self.live.get(last, ()))]


def _mark_weights(model: nn.Module) -> dict[str, mx.array]:
    """A placeholder of its own for every weight, so that tied ones can be told apart."""
    weights = {
        path: placeholder(array.shape, array.dtype) for path, array in tree_flatten(model.parameters())
    }
    model.update(tree_unflatten(list(weights.items())))
    return weights


def _paths(model: nn.Module, layers: list[nn.Module]) -> tuple[str, ...]:
    where = {id(module): path for path, module in model.named_modules()}
    return tuple(where.get(id(layer), "") for layer in layers)


def _passes(
    model: nn.Module, layers: list[nn.Module], weights: list[mx.array], config: Mapping[str, Any]
) -> tuple[list[_Traced] | None, str | None]:
    """The passes, or why the model cannot be seen through."""
    caches = make_prompt_cache(model)
    plan = [(_FIRST, caches), (_OTHER, make_prompt_cache(model)), (_CHUNK, caches), (_STEP, caches)]
    for beyond in _beyond(config):
        long = make_prompt_cache(model)
        plan += [((2, beyond), long), ((2, 1), long)]
    passes = []
    for (batch, tokens), cache in plan:
        traced, reason = _trace(model, layers, weights, cache, batch, tokens)
        if traced is None:
            return None, reason
        passes.append(traced)
    return passes, None


def _beyond(config: Mapping[str, Any]) -> Iterator[int]:
    nested = config.get("text_config")
    for settings in (config, nested if isinstance(nested, Mapping) else {}):
        for key in _THRESHOLDS:
            value = settings.get(key)
            if isinstance(value, int) and 0 < value < 65_536:
                yield value + 3


def _trace(
    model: nn.Module,
    layers: list[nn.Module],
    weights: list[mx.array],
    caches: list[Any],
    batch: int,
    tokens: int,
) -> tuple[_Traced | None, str | None]:
    # p: a weight, c: in a cache before, t: the token ids, o: a layer's output, k: what the pass leaves.
    marks = {f"p{number}": array for number, array in enumerate(weights)}
    for number, cache in enumerate(caches):
        for place, (holder, key, array) in enumerate(_arrays_of(cache)):
            fresh = placeholder(array.shape, array.dtype)
            holder[key] = fresh
            marks[f"c{number}_{place}"] = fresh
    marks["t_ids"] = placeholder((batch, tokens), mx.int32)
    with _watched(layers, caches) as visits:
        logits = model(marks["t_ids"], cache=caches)
    if [visit.layer for visit in visits] != list(range(len(layers))):
        return None, "its layers do not run once each, in their order"
    for visit in visits:
        for place, leaf in enumerate(visit.leaves):
            marks[f"o{visit.layer}_{place}"] = leaf
    marks["k_logits"] = mark(logits)
    for number, cache in enumerate(caches):
        for place, (_, _, array) in enumerate(_arrays_of(cache)):
            marks[f"k{number}_{place}"] = mark(array)
    return _Traced(read_graph(marks).between_marks(), tuple(visits), batch, tokens), None


@contextmanager
def _watched(layers: list[nn.Module], caches: list[Any]) -> Iterator[list[_Visit]]:
    """While it lasts, every layer writes down what it was given and marks what it gives."""
    place = {id(part): number for number, cache in enumerate(caches) for part in _parts(cache)}
    number_of = {id(layer): number for number, layer in enumerate(layers)}
    visits: list[_Visit] = []
    originals = [layer.__class__ for layer in layers]

    def watch(base: type) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            given = {place[id(each)] for each in _objects((args, kwargs)) if id(each) in place}
            leaves, template = flatten(base.__call__(self, *args, **kwargs))
            marked = [mark(leaf) for leaf in leaves]
            visits.append(_Visit(number_of[id(self)], tuple(sorted(given)), template, marked))
            return unflatten(template, marked)

        return call

    try:
        for layer, base in zip(layers, originals, strict=True):
            swap_call(layer, watch(base))
        yield visits
    finally:
        for layer, base in zip(layers, originals, strict=True):
            layer.__class__ = base


def swap_call(layer: nn.Module, call: Callable[..., Any]) -> None:
    """Gives one layer another `__call__`; its class name, its attributes and isinstance stay."""
    base = layer.__class__
    layer.__class__ = type(base.__name__, (base,), {"__call__": call})


def _parts(cache: Any) -> Iterator[Any]:
    yield cache
    for inner in getattr(cache, "caches", ()):
        yield from _parts(inner)


def _objects(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _objects(inner)
    elif type(value) is dict:
        yield from _objects(list(value.values()))
    yield value


def _arrays_of(cache: Any) -> Iterator[tuple[Any, Any, mx.array]]:
    """Every array that a cache holds, with what holds it."""
    for part in _parts(cache):
        yield from _arrays_in(vars(part))


def _arrays_in(holder: Any) -> Iterator[tuple[Any, Any, mx.array]]:
    for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        if isinstance(value, mx.array):
            yield holder, key, value
        elif isinstance(value, list | dict):
            yield from _arrays_in(value)


# ------------------------------------------------------------------------- judging


def _judge(anatomy: Anatomy, passes: list[_Traced]) -> Anatomy:
    n = anatomy.n_layers
    given = tuple(
        tuple(sorted({cache for traced in passes for cache in traced.visits[layer].caches}))
        for layer in range(n)
    )
    anatomy = _with(anatomy, caches_of=given, _graphs=tuple(passes))
    owner = anatomy.owners()
    layer_of = [owner[path] for path in anatomy.weights]
    cuts = tuple(_cut(anatomy, passes, layer_of, at) for at in range(1, n))
    return _with(anatomy, cuts=cuts)


def _cut(anatomy: Anatomy, passes: list[_Traced], layer_of: list[int | None], at: int) -> Cut:
    before = set(anatomy.caches(0, at))
    shared = before & {cache for layer in range(at, anatomy.n_layers) for cache in anatomy.caches_of[layer]}
    if shared:
        return Cut(at, None, "layers on both sides keep their keys and values in one cache")
    live: set[int] = set()
    for traced in passes:
        received = f"o{at - 1}_"
        behind = traced.made_from(anatomy, at, anatomy.n_layers)
        here = {int(name[len(received) :]) for name in behind if name.startswith(received)}
        live |= here
        problem = _reads_back(behind, before, layer_of, at)
        if problem is not None:
            return Cut(at, None, problem)
    for traced in passes:
        traced.live[at] = frozenset(live)
        ahead = traced.made_from(anatomy, 0, at)
        if any(name[0] == "p" and (layer_of[int(name[1:])] or 0) >= at for name in ahead):
            return Cut(at, None, "a layer after it changes what the layers before it keep")
    payload = _payload(passes, at, live)
    return Cut(at, None, payload) if isinstance(payload, str) else Cut(at, payload, None)


def _reads_back(behind: set[str], before: set[int], layer_of: list[int | None], at: int) -> str | None:
    """What the layers after a cut take from before it, other than what is sent."""
    outputs, insides, kept = {-1}, {-1}, False
    for name in behind:
        kind, number = name[0], name[1:].split("_")[0]
        if kind == "c":
            kept |= int(number) in before
        elif kind == "o" and int(number) < at - 1:
            outputs.add(int(number))
        elif kind == "p":
            layer = layer_of[int(number)]
            if layer is not None and layer < at:
                insides.add(layer)
    if max(insides) > max(outputs):
        return f"a later layer reads what layer {max(insides)} computes inside"
    if max(outputs) >= 0:
        return f"a later layer reads the output of layer {max(outputs)}"
    return "a later layer reads what a layer before it keeps" if kept else None


def _payload(passes: list[_Traced], at: int, live: set[int]) -> Payload | str:
    """How what crosses the cut is sent, or why it cannot be."""
    visits = [traced.visits[at - 1] for traced in passes]
    template = visits[0].template
    if any(visit.template != template for visit in visits):
        return "what crosses it is not of one form"
    if any(isinstance(part, Const) and part.opaque for part in _walk(template)):
        return "something that is no tensor crosses it"
    slots: list[Slot | None] = []
    for leaf in range(len(visits[0].leaves)):
        shapes = [visit.leaves[leaf].shape for visit in visits]
        if leaf not in live:
            slots.append(None)
            continue
        slot = _slot(shapes, [(traced.batch, traced.tokens) for traced in passes])
        if slot is None:
            return "a tensor crosses it that does not have one row for each token"
        dtype = visits[0].leaves[leaf].dtype
        if not mx.issubdtype(dtype, mx.floating):
            return "a tensor crosses it that does not hold fractions"
        slots.append(Slot(slot[0], slot[1], slot[2], dtype))
    if not live:
        return "nothing that it sends is used after it"
    return Payload(template, tuple(slots))


def _slot(
    shapes: Sequence[tuple[int, ...]], sizes: Sequence[tuple[int, int]]
) -> tuple[int, int, tuple[int, ...]] | None:
    """Which axis counts sequences and which tokens; None if the rest is not the same in all passes."""
    if len({len(shape) for shape in shapes}) != 1:
        return None
    axes = range(len(shapes[0]))

    def follows(axis: int, which: int) -> bool:
        return all(shape[axis] == size[which] for shape, size in zip(shapes, sizes, strict=True))

    batch = next((axis for axis in axes if follows(axis, 0)), None)
    tokens = next((axis for axis in axes if follows(axis, 1)), None)
    if batch is None or tokens is None:
        return None
    rest = {tuple(shape[axis] for axis in axes if axis not in (batch, tokens)) for shape in shapes}
    return (batch, tokens, rest.pop()) if len(rest) == 1 else None


def _walk(template: Template) -> Iterator[Template]:
    yield template
    if not isinstance(template, Leaf | Const):
        for inner in template.items:
            yield from _walk(inner)


def _with(anatomy: Anatomy, **changes: Any) -> Anatomy:
    return replace(anatomy, **changes)
