"""From a checked directory to a stage in memory: only the stage's tensors are read.

mlx-lm builds the model and repairs the checkpoint's names (`sanitize`, every quantization it knows,
per-path overrides). It is given every tensor's name, dtype and shape, but only the stage's own bytes:
for the others a placeholder stands, of not-a-number where that exists, so that a mistake shows. First
a skeleton of placeholders alone tells what a stage needs; nothing but headers is read for that. Then
the stage's tensors are read layer by layer. Where they come from is an `Origin`: the directory's files,
or something that makes them (random_weights).

Numerics: with a `dtype`, whatever holds fractions (weights, norms, embeddings, the scales and biases of
affine quantization) is cast to it while it is read; packed integers and the byte scales of mxfp4, mxfp8
and nvfp4 stay. So `exact` (float32) multiplies packed weights with float32 activations, which is what
MLX itself does with float32 inputs. Knows nothing of requests, caches or frames.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from exo_cli.engine.checks import check_formats, check_packed, check_quantization, check_weights
from exo_cli.engine.cuts import Anatomy, survey
from exo_cli.engine.families import check_backend, check_kernels, classes, module_name
from exo_cli.engine.finite import check_finite
from exo_cli.engine.graph import mark, placeholder, read_graph
from exo_cli.engine.lean import utilities
from exo_cli.engine.slicing import Stage
from exo_cli.errors import BadData, ExoError, Internal
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.safetensors import TensorInfo, shown

_MLX_LM: Final = utilities()

DTYPES: Final[dict[str, mx.Dtype]] = {
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "C64": mx.complex64,
    "BOOL": mx.bool_,
    "I64": mx.int64,
    "I32": mx.int32,
    "I16": mx.int16,
    "I8": mx.int8,
    "U64": mx.uint64,
    "U32": mx.uint32,
    "U16": mx.uint16,
    "U8": mx.uint8,
    "F8_E4M3": mx.uint8,
    "F8_E8M0": mx.uint8,
}
"""What MLX reads each dtype of a file as; dtypes that are missing it cannot read."""


_FAULTS: Final = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ZeroDivisionError),
    *(AssertionError, NotImplementedError, OverflowError, ImportError),
)
"""What mlx-lm's constructors raise over a configuration or checkpoint that is not as they expect."""


Source = Mapping[str, mx.array]


class Origin(Protocol):
    """Where tensors come from."""

    def arrays(self, directory: ModelDirectory, needed: Iterable[TensorInfo]) -> dict[str, mx.array]:
        """These tensors by name, not computed yet."""

    def prepare(self, names: Iterable[str]) -> None:
        """Called with every tensor's name, just before it is computed."""


class Files:
    """The directory's own files."""

    def arrays(self, directory: ModelDirectory, needed: Iterable[TensorInfo]) -> dict[str, mx.array]:
        by_file: dict[str, list[TensorInfo]] = {}
        for info in needed:
            by_file.setdefault(info.file, []).append(info)
        found: dict[str, mx.array] = {}
        for file, infos in by_file.items():
            try:
                arrays = mx.load(str(directory.path / file))
            except (RuntimeError, ValueError) as error:
                raise BadData(f"{file} cannot be read: {error}"[:300]) from error
            assert isinstance(arrays, dict)
            for info in infos:
                array = arrays.get(info.name)
                if array is None or array.shape != info.shape or array.dtype != _dtype(info):
                    raise BadData(
                        f"{file}: tensor {shown(info.name)} changed while the model was being loaded"
                    )
                found[info.name] = array
        return found

    def prepare(self, names: Iterable[str]) -> None:
        """MLX reads them by itself."""


FILES: Final = Files()


@dataclass(frozen=True)
class Skeleton:
    """A model of placeholders: where it may be cut, and which of the file's tensors make each weight."""

    directory: ModelDirectory
    dtype: mx.Dtype | None
    anatomy: Anatomy
    made_of: Mapping[str, frozenset[str]] = field(repr=False)
    """Weight to the names of the tensors in the files."""
    origin: Origin = field(default=FILES, repr=False)

    def tensors(self, first: int, last: int) -> tuple[TensorInfo, ...]:
        """The tensors of the files that a stage needs, by file and place."""
        weights = self.anatomy.stage_weights(first, last)
        names = {name for weight in weights for name in self.made_of[weight]}
        table = self.directory.tensors
        return tuple(sorted((table[name] for name in names), key=lambda info: (info.file, info.start)))

    def check_chain(self, stages: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """Every layer owned exactly once, nothing needed by nobody; the tensors that no stage reads."""
        at = 0
        for first, last in stages:
            if first != at:
                what = "belongs to two stages" if first < at else "belongs to no stage"
                raise BadData(f"layer {min(first, at)} {what}")
            self.anatomy.check_range(first, last)
            at = last
        if at != self.anatomy.n_layers:
            raise BadData(f"layer {at} belongs to no stage")
        owners = self.anatomy.owners()
        counts = dict.fromkeys(owners, 0)
        for first, last in stages:
            for weight in self.anatomy.stage_weights(first, last):
                counts[weight] += 1
        for weight, layer in owners.items():
            if layer is not None and counts[weight] != 1:
                raise Internal(f"{weight} of layer {layer} is in {counts[weight]} stages")
        used = {name for weight, count in counts.items() if count for name in self.made_of[weight]}
        return tuple(sorted(set(self.directory.tensors) - used))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A stage in memory."""

    stage: Stage
    weights_bytes: int
    """What its weights take, as they lie in memory."""
    read_bytes: int
    """What was read of the files' tensors."""


def look(
    directory: ModelDirectory, dtype: mx.Dtype | None = mx.float32, *, origin: Origin = FILES
) -> Skeleton:
    """What the model is made of and where it may be cut; reads no tensor."""
    model_type = module_name(directory.config)
    check_kernels(model_type)
    tensors = {info.name: placeholder(info.shape, _dtype(info)) for info in directory.tensors.values()}
    model, _ = _build(directory, tensors, dtype)
    made_of = _made_of(model, tensors)
    try:
        anatomy = survey(model, model_type=model_type, config=directory.config)
    except _FAULTS as error:
        raise _wrong_config(directory, error) from error
    return Skeleton(directory, dtype, anatomy, made_of, origin)


def load_stage(
    skeleton: Skeleton, first: int, last: int, *, progress: Callable[[int, int], None] | None = None
) -> Loaded:
    """Reads the tensors of layers `first` to `last` (excluded) and gives a stage that is ready to run.

    `progress` hears (layers done, layers in all). The thread that calls this has to run the stage.
    """
    return open_stage(skeleton, first, last).read(progress)


@dataclass(frozen=True, slots=True)
class Opened:
    """A stage whose weights are not read yet."""

    skeleton: Skeleton
    stage: Stage
    mine: frozenset[str]
    """The paths of its weights."""
    same: Mapping[str, TensorInfo] = field(repr=False)
    """Weights that are a file's tensor as it lies there, but for a cast."""
    weights_bytes: int
    read_bytes: int
    _unread: dict[str, mx.array] = field(repr=False)

    def read(self, progress: Callable[[int, int], None] | None = None, *, but: Container[str] = ()) -> Loaded:
        """Evaluates what is not read yet, a layer at a time, so that no more than one is in memory twice."""
        owner = self.skeleton.anatomy.owners()
        first, last = self.stage.first, self.stage.last
        groups: dict[int | None, list[str]] = {}
        for path in sorted(set(self._unread).difference(each for each in self._unread if each in but)):
            groups.setdefault(owner[path], []).append(path)
        if progress is not None:
            progress(0, last - first)
        for done, layer in enumerate([None, *range(first, last)]):
            weights = {path: self._unread.pop(path) for path in groups.get(layer, [])}
            self._evaluate(weights, layer)
            if progress is not None and done:
                progress(done, last - first)
        return Loaded(self.stage, self.weights_bytes, self.read_bytes)

    def _evaluate(self, weights: dict[str, mx.array], layer: int | None) -> None:
        made_of = self.skeleton.made_of
        self.skeleton.origin.prepare({name for path in weights for name in made_of[path]})
        try:
            mx.eval(list(weights.values()))
        except RuntimeError as error:
            raise BadData(f"the weights of layer {layer} cannot be read: {error}"[:300]) from error
        check_finite(weights, weights, self.stage.model)


def open_stage(skeleton: Skeleton, first: int, last: int) -> Opened:
    """A stage of layers `first` to `last` (excluded); nothing of its weights is read."""
    directory, anatomy = skeleton.directory, skeleton.anatomy
    check_backend(anatomy.model_type)
    needed = skeleton.tensors(first, last)
    source = {info.name: _not_here(info.shape, _dtype(info)) for info in directory.tensors.values()}
    source |= skeleton.origin.arrays(directory, needed)
    model, unchanged = _build(directory, source, skeleton.dtype)
    source.clear()  # or what is cast would stay in memory as it was read, too
    weights = dict(tree_flatten(model.parameters()))
    mine = anatomy.stage_weights(first, last)
    check_formats(model, mine)
    for path, array in weights.items():
        if path not in mine:
            weights[path] = _not_here(array.shape, array.dtype)
    model.update(tree_unflatten(list(weights.items())))
    model.eval()
    distinct = {id(weights[path]): weights[path] for path in mine}
    lies_there = skeleton.origin is FILES
    return Opened(
        skeleton=skeleton,
        stage=Stage(model, anatomy, first, last),
        mine=mine,
        same={path: directory.tensors[name] for path, name in unchanged.items() if lies_there},
        weights_bytes=sum(array.nbytes for array in distinct.values()),
        read_bytes=sum(info.nbytes for info in needed),
        _unread={path: weights[path] for path in mine},
    )


def _not_here(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.full(shape, float("nan") if mx.issubdtype(dtype, mx.floating) else 0, dtype)


def _dtype(info: TensorInfo) -> mx.Dtype:
    dtype = DTYPES.get(info.dtype)
    if dtype is None:
        raise BadData(f"{info.file}: tensor {shown(info.name)} is of {info.dtype}, which MLX cannot read")
    return dtype


def _build(
    directory: ModelDirectory, tensors: Source, dtype: mx.Dtype | None
) -> tuple[nn.Module, dict[str, str]]:
    """mlx-lm's own way from a directory to a lazy model, with our tensors in place of the files'.

    Beside it, weight to tensor, those weights that are one of these and nothing that was made of it.
    """
    check_quantization(directory.config)
    base, arguments = classes(directory.config)

    class Guarded(base):  # type: ignore[misc,valid-type]
        """Takes our tensors instead of those that mlx-lm found, and checks what arrives."""

        def sanitize(self, _: Any) -> Any:
            given = dict(tensors)
            repaired = super().sanitize(given) if hasattr(base, "sanitize") else given
            check_packed(self, repaired)
            return repaired

        def load_weights(self, weights: Any, strict: bool = True) -> Any:
            check_weights(self, dict(weights))
            return super().load_weights(weights, strict=False)

    try:
        model, _ = _MLX_LM.load_model(
            directory.path, lazy=True, strict=False, get_model_classes=lambda config: (Guarded, arguments)
        )
    except ExoError:
        raise
    except _FAULTS as error:
        raise _wrong_config(directory, error) from error
    model.__class__ = base
    names = {id(array): name for name, array in tensors.items()}
    weights = tree_flatten(model.parameters())
    unchanged = {path: names[id(array)] for path, array in weights if id(array) in names}
    if dtype is not None:
        cast = [
            (path, array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array)
            for path, array in weights
        ]
        model.update(tree_unflatten(cast))
    return model, unchanged


def _made_of(model: nn.Module, tensors: Source) -> dict[str, frozenset[str]]:
    """Weight to the tensors that it is computed from."""
    weights = [path for path, _ in tree_flatten(model.parameters())]
    names = list(tensors)
    marks = {f"r{number}": array for number, array in enumerate(tensors.values())}
    arrays = dict(tree_flatten(model.parameters()))
    marks |= {f"w{number}": mark(arrays[path]) for number, path in enumerate(weights)}
    graph = read_graph(marks)
    return {
        path: frozenset(names[int(name[1:])] for name in graph.behind(f"w{number}") if name[0] == "r")
        for number, path in enumerate(weights)
    }


def _wrong_config(directory: ModelDirectory, error: BaseException) -> BadData:
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return BadData(
        f"config.json and the weights do not make a {shown(directory.model_type)} model ({what})"[:400],
        hint="Fetch the model again, or name another one.",
    )
