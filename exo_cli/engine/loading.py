"""From a checked directory to a stage in memory: only the stage's tensors are read.

mlx-lm builds the model and repairs the checkpoint's names (`sanitize`, every quantization it knows,
per-path overrides). It is given every tensor's name, dtype and shape, but only the stage's own bytes:
for the others a placeholder stands, of not-a-number where that exists, so that a mistake shows. First
a skeleton of placeholders alone tells what a stage needs; nothing but headers is read for that. Then
the stage's tensors are read layer by layer. Only mlx_lm's own modules are imported, never a model's.

Numerics: with a `dtype`, whatever holds fractions (weights, norms, embeddings, the scales and biases of
affine quantization) is cast to it while it is read; packed integers and the byte scales of mxfp4, mxfp8
and nvfp4 stay. So `exact` (float32) multiplies packed weights with float32 activations, which is what
MLX itself does with float32 inputs. Knows nothing of requests, caches or frames.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
import mlx_lm.utils
from mlx.utils import tree_flatten, tree_unflatten

from exo_cli.engine.cuts import Anatomy, survey
from exo_cli.engine.graph import mark, placeholder, read_graph
from exo_cli.engine.slicing import Stage
from exo_cli.errors import BadData, ExoError, Internal
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.safetensors import TensorInfo, shown

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

METAL_ONLY: Final = frozenset({"bitnet", "muse_spark"})
"""Families with kernels that are written for Metal."""

NOT_ON_CPU: Final = {"phi3small": "MLX's CPU build damages its own memory when it runs this family"}

GROUP_SIZES: Final = (16, 32, 64, 128)
PACKED_BITS: Final = (2, 3, 4, 5, 6, 8)
MODES: Final = ("affine", "mxfp4", "mxfp8", "nvfp4")
"""MLX's own figures. It divides by them before it checks them, so they are checked here."""

_HELPERS: Final = {
    "base",
    "cache",
    "pipeline",
    "switch_layers",
    "rope_utils",
    "activations",
    "mla",
    "ssm",
} | {
    "gated_delta",
    "bitlinear_layers",
}
_FAULTS: Final = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ZeroDivisionError),
    *(AssertionError, NotImplementedError, OverflowError, ImportError),
)
"""What mlx-lm's constructors raise over a configuration or checkpoint that is not as they expect."""

_NOT_TOGETHER: Final = "Fetch the model again; config.json and the weights do not belong together."

Source = Mapping[str, mx.array]


@dataclass(frozen=True)
class Skeleton:
    """A model of placeholders: where it may be cut, and which of the file's tensors make each weight."""

    directory: ModelDirectory
    dtype: mx.Dtype | None
    anatomy: Anatomy
    made_of: Mapping[str, frozenset[str]] = field(repr=False)
    """Weight to the names of the tensors in the files."""

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


def families() -> tuple[str, ...]:
    """The model types that the installed mlx-lm has a module for."""
    found = (module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__))
    return tuple(sorted(set(found) - _HELPERS))


def look(directory: ModelDirectory, dtype: mx.Dtype | None = mx.float32) -> Skeleton:
    """What the model is made of and where it may be cut; reads no tensor."""
    model_type = _module_name(directory.config)
    _check_kernels(model_type)
    tensors = {info.name: placeholder(info.shape, _dtype(info)) for info in directory.tensors.values()}
    model = _build(directory, tensors, dtype)
    made_of = _made_of(model, tensors)
    try:
        anatomy = survey(model, model_type=model_type, config=directory.config)
    except _FAULTS as error:
        raise _wrong_config(directory, error) from error
    return Skeleton(directory, dtype, anatomy, made_of)


def load_stage(
    skeleton: Skeleton, first: int, last: int, *, progress: Callable[[int, int], None] | None = None
) -> Loaded:
    """Reads the tensors of layers `first` to `last` (excluded) and gives a stage that is ready to run.

    `progress` hears (layers done, layers in all). The thread that calls this has to run the stage.
    """
    directory, anatomy = skeleton.directory, skeleton.anatomy
    _check_backend(anatomy.model_type)
    needed = skeleton.tensors(first, last)
    source = _source(directory, needed)
    model = _build(directory, source, skeleton.dtype)
    source.clear()  # or what is cast would stay in memory as it was read, too
    weights = dict(tree_flatten(model.parameters()))
    mine = anatomy.stage_weights(first, last)
    for path, array in weights.items():
        if path not in mine:
            weights[path] = _not_here(array.shape, array.dtype)
    total = _read(weights, mine, anatomy, first, last, progress)
    model.update(tree_unflatten(list(weights.items())))
    model.eval()
    return Loaded(Stage(model, anatomy, first, last), total, sum(info.nbytes for info in needed))


def _read(
    weights: Mapping[str, mx.array],
    mine: frozenset[str],
    anatomy: Anatomy,
    first: int,
    last: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Evaluates the stage's weights, a layer at a time, so that no more than one is in memory twice."""
    owner = anatomy.owners()
    groups: dict[int | None, list[mx.array]] = {}
    for path in sorted(mine):
        groups.setdefault(owner[path], []).append(weights[path])
    if progress is not None:
        progress(0, last - first)
    for done, layer in enumerate([None, *range(first, last)]):
        try:
            mx.eval(groups.get(layer, []))
        except RuntimeError as error:
            raise BadData(f"the weights of layer {layer} cannot be read: {error}"[:300]) from error
        if progress is not None and done:
            progress(done, last - first)
    distinct = {id(array): array for group in groups.values() for array in group}
    return sum(array.nbytes for array in distinct.values())


def _source(directory: ModelDirectory, needed: Iterable[TensorInfo]) -> dict[str, mx.array]:
    """Every tensor by name: lazily from its file if it is needed, else a placeholder."""
    by_file: dict[str, list[TensorInfo]] = {}
    for info in needed:
        by_file.setdefault(info.file, []).append(info)
    found = {info.name: _not_here(info.shape, _dtype(info)) for info in directory.tensors.values()}
    for file, infos in by_file.items():
        try:
            arrays = mx.load(str(directory.path / file))
        except (RuntimeError, ValueError) as error:
            raise BadData(f"{file} cannot be read: {error}"[:300]) from error
        assert isinstance(arrays, dict)
        for info in infos:
            array = arrays.get(info.name)
            if array is None or array.shape != info.shape or array.dtype != _dtype(info):
                raise BadData(f"{file}: tensor {shown(info.name)} changed while the model was being loaded")
            found[info.name] = array
    return found


def _not_here(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.full(shape, float("nan") if mx.issubdtype(dtype, mx.floating) else 0, dtype)


def _dtype(info: TensorInfo) -> mx.Dtype:
    dtype = DTYPES.get(info.dtype)
    if dtype is None:
        raise BadData(f"{info.file}: tensor {shown(info.name)} is of {info.dtype}, which MLX cannot read")
    return dtype


def _build(directory: ModelDirectory, tensors: Source, dtype: mx.Dtype | None) -> nn.Module:
    """mlx-lm's own way from a directory to a lazy model, with our tensors in place of the files'."""
    _check_quantization(directory.config)
    base, arguments = _classes(directory.config)

    class Guarded(base):  # type: ignore[misc,valid-type]
        """Takes our tensors instead of those that mlx-lm found, and checks what arrives."""

        def sanitize(self, _: Any) -> Any:
            given = dict(tensors)
            repaired = super().sanitize(given) if hasattr(base, "sanitize") else given
            _check_packed(self, repaired)
            return repaired

        def load_weights(self, weights: Any, strict: bool = True) -> Any:
            _check_weights(self, dict(weights))
            return super().load_weights(weights, strict=False)

    try:
        model, _ = mlx_lm.utils.load_model(
            directory.path, lazy=True, strict=False, get_model_classes=lambda config: (Guarded, arguments)
        )
    except ExoError:
        raise
    except _FAULTS as error:
        raise _wrong_config(directory, error) from error
    model.__class__ = base
    if dtype is not None:
        cast = [
            (path, array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array)
            for path, array in tree_flatten(model.parameters())
        ]
        model.update(tree_unflatten(cast))
    return model


def _check_quantization(config: Mapping[str, Any]) -> None:
    """What config.json says of group sizes, bits and modes, for everything and path by path."""
    settings = config.get("quantization")
    if settings is not None:
        if not isinstance(settings, Mapping):
            raise BadData("config.json: quantization is not an object")
        for each in (settings, *(inner for inner in settings.values() if isinstance(inner, Mapping))):
            _check_figures(each, "quantization")
    nested = config.get("text_config")
    for holder in (config, nested if isinstance(nested, Mapping) else {}):
        other = holder.get("quantization_config")
        if isinstance(other, Mapping) and other.get("quant_method") in ("awq", "gptq", "modelopt"):
            inner = other.get("quantization")
            _check_figures(inner if isinstance(inner, Mapping) else other, "quantization_config")


def _check_figures(settings: Mapping[str, Any], where: str) -> None:
    for key, allowed in (("group_size", GROUP_SIZES), ("bits", PACKED_BITS), ("mode", MODES)):
        value = settings.get(key)
        if value is not None and (isinstance(value, bool | float) or value not in allowed):
            raise BadData(f"config.json: {where} has {key} {shown(value)}; MLX knows {allowed}")


def _check_packed(model: nn.Module, given: Mapping[str, mx.array]) -> None:
    """Packed weights and their scales must be of a group size and of bits that exist."""
    asked = dict(tree_flatten(model.parameters()))
    for name, scales in given.items():
        weight = name.removesuffix("scales") + "weight"
        if not name.endswith(".scales") or weight not in asked or weight not in given:
            continue
        width, packed, groups = (
            array.shape[-1] if array.shape else 0 for array in (asked[weight], given[weight], scales)
        )
        sizes = (16, 32) if scales.dtype == mx.uint8 else (32, 64, 128)
        fits = width and groups and width % groups == 0 and width // groups in sizes
        if not fits or packed * 32 % width or packed * 32 // width not in PACKED_BITS:
            raise BadData(
                f"{weight} is packed as {list(given[weight].shape)} with scales {list(scales.shape)}, "
                f"but config.json makes it {width} wide",
                hint=_NOT_TOGETHER,
            )


def _check_weights(model: nn.Module, given: Mapping[str, mx.array]) -> None:
    """What the files hold against what config.json asks for."""
    asked = dict(tree_flatten(model.parameters()))
    for path, array in asked.items():
        found = given.get(path)
        if found is None:
            raise BadData(
                f"the files have no tensor for {path}, which config.json asks for",
                hint=_NOT_TOGETHER,
            )
        if found.shape != array.shape:
            raise BadData(
                f"the tensor for {path} is {list(found.shape)}, but config.json makes it {list(array.shape)}",
                hint=_NOT_TOGETHER,
            )
        fractions = mx.issubdtype(array.dtype, mx.floating)
        if not (mx.issubdtype(found.dtype, mx.floating) if fractions else found.dtype == array.dtype):
            raise BadData(f"the tensor for {path} is of {found.dtype} where {array.dtype} is due")
    extra = sorted(set(given) - set(asked))
    if extra:
        raise BadData(
            f"the files hold {len(extra)} tensors that this family does not have, first {shown(extra[0])}",
            hint=_NOT_TOGETHER,
        )


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


def _classes(config: Mapping[str, Any]) -> tuple[type[nn.Module], Any]:
    """The family's Model and ModelArgs; only out of modules that mlx-lm brought along."""
    name = _module_name(config)
    try:
        with redirect_stdout(StringIO()):
            module = importlib.import_module(f"mlx_lm.models.{name}")
    except SystemExit as error:
        raise BadData(
            f"mlx-lm's module for {name} needs a package that is not installed",
            hint="Run another family; exo does not install packages for models.",
        ) from error
    except ImportError as error:
        raise BadData(f"mlx-lm's module for {name} cannot be imported: {error}"[:300]) from error
    return module.Model, module.ModelArgs


def _module_name(config: Mapping[str, Any]) -> str:
    model_type = str(config["model_type"])
    architectures = config.get("architectures") or ()
    if isinstance(architectures, str):
        architectures = (architectures,)
    for architecture in architectures:
        special = mlx_lm.utils.MODEL_ARCHITECTURE_REMAPPING.get((model_type, architecture))
        if special is not None:
            return str(special)
    name = str(mlx_lm.utils.MODEL_REMAPPING.get(model_type, model_type))
    if name not in _known():
        raise BadData(
            f"this exo has no architecture called {shown(model_type)}",
            hint="Update exo, or choose a model of another family.",
        )
    return name


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(families())


def _check_kernels(model_type: str) -> None:
    if model_type in METAL_ONLY and not mx.metal.is_available():
        raise BadData(f"{model_type} runs on Macs alone: its kernels are written for Metal")


def _check_backend(model_type: str) -> None:
    reason = NOT_ON_CPU.get(model_type)
    if reason is not None and mx.default_device() == mx.Device(mx.cpu, 0):
        raise BadData(f"{model_type} does not run on this machine's CPU: {reason}")


def _wrong_config(directory: ModelDirectory, error: BaseException) -> BadData:
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return BadData(
        f"config.json and the weights do not make a {shown(directory.model_type)} model ({what})"[:400],
        hint="Fetch the model again, or name another one.",
    )
