"""Which bytes of a model a stage needs, told from the tensors' names alone.

For processes without a tensor library, before anything is loaded. The engine knows better (its
skeleton follows each weight to the tensors that make it); this gives at least that much. A tensor whose
layer is not certain goes to every stage, and a model whose layers are numbered in a way that is not
understood goes to every stage whole. Knows no family of models.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from exo_cli.errors import BadData
from exo_cli.fetch.pieces import Span, merged
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.safetensors import TensorInfo

_LAYERS: Final = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_NUMBERED: Final = re.compile(r"(?P<stack>(?:[^.]*[^.0-9][^.]*\.)+)(?P<layer>\d{1,4})\.")
_EMBEDDING: Final = frozenset(("embed_tokens", "wte", "tok_embeddings", "word_embeddings"))
_HEAD: Final = frozenset(("lm_head", "embed_out"))


def layers_in_model(config: Mapping[str, Any]) -> int:
    """How many layers config.json says that there are."""
    inner = config.get("text_config")
    for settings in (config, inner if isinstance(inner, dict) else {}):
        for key in _LAYERS:
            found = settings.get(key)
            if type(found) is int and found > 0:
                return found
    raise BadData(
        "config.json does not say how many layers the model has", hint="exo looks for num_hidden_layers."
    )


def whole_files(directory: ModelDirectory) -> list[Span]:
    """All bytes of the weights."""
    return [Span(header.file, 0, header.size) for header in directory.files]


def layers_covered(
    directory: ModelDirectory, covers: Callable[[str, int, int], bool], count: int
) -> list[tuple[int, int]]:
    """The runs of layers, last ones excluded, that `covers` has every tensor of."""
    stack = _main_stack(directory.tensors.values(), count)
    if stack is None:
        return []
    lacking = {
        _layer_in(tensor.name, stack)
        for tensor in directory.tensors.values()
        if not covers(tensor.file, tensor.start, tensor.end)
    }
    runs: list[tuple[int, int]] = []
    for layer in range(count):
        if layer in lacking:
            continue
        if runs and runs[-1][1] == layer:
            runs[-1] = (runs[-1][0], layer + 1)
        else:
            runs.append((layer, layer + 1))
    return runs


def stage_ranges(directory: ModelDirectory, first: int, last: int, layers_in_model: int) -> list[Span]:
    """The byte ranges for layers `first` to `last` (excluded) of the model's `layers_in_model`."""
    if not 0 <= first < last <= layers_in_model:
        raise BadData(f"layers {first} to {last} of a model that has {layers_in_model}")
    tensors = directory.tensors.values()
    stack = _main_stack(tensors, layers_in_model)
    if stack is None:
        return spans_of(tensors)
    tied = _may_be_tied(directory)
    wanted = []
    for tensor in tensors:
        layer = _layer_in(tensor.name, stack)
        if layer is not None:
            # Heads that predict further tokens are numbered after the layers.
            mine = first <= layer < last or (layer >= layers_in_model and last == layers_in_model)
        else:
            beside = _beside(tensor.name, stack)
            mine = (
                (beside not in _EMBEDDING or first == 0 or (tied and last == layers_in_model))
                and (beside not in _HEAD or last == layers_in_model)
            )  # fmt: skip
        if mine:
            wanted.append(tensor)
    return spans_of(wanted)


def spans_of(tensors: Iterable[TensorInfo]) -> list[Span]:
    """Where these tensors lie, in as few ranges as can be."""
    return merged(Span(tensor.file, tensor.start, tensor.end) for tensor in tensors)


def _main_stack(tensors: Iterable[TensorInfo], layers: int) -> str | None:
    """What stands before the layers' numbers: `model.layers.`; None if that is not certain."""
    numbers: dict[str, set[int]] = {}
    sizes: dict[str, int] = {}
    for tensor in tensors:
        found = _NUMBERED.match(tensor.name)
        if found is not None:
            numbers.setdefault(found["stack"], set()).add(int(found["layer"]))
            sizes[found["stack"]] = sizes.get(found["stack"], 0) + tensor.nbytes
    whole = [stack for stack, seen in numbers.items() if seen.issuperset(range(layers))]
    return max(whole, key=lambda stack: (sizes[stack], stack), default=None)


def _layer_in(name: str, stack: str) -> int | None:
    found = _NUMBERED.match(name)
    return int(found["layer"]) if found is not None and found["stack"] == stack else None


def _beside(name: str, stack: str) -> str | None:
    """The module that a tensor belongs to, if it stands beside the stack or further up."""
    parts = name.split(".")
    above = stack.removesuffix(".").split(".")[:-1]
    if len(parts) < 2 or parts[:-2] != above[: len(parts) - 2]:
        return None
    return parts[-2]


def _may_be_tied(directory: ModelDirectory) -> bool:
    """Whether the head may be the embedding again; only a plain no, with a head in the files, is one."""
    if not any(name.split(".")[-2:-1] == [head] for name in directory.tensors for head in _HEAD):
        return True
    config = directory.config
    text = config.get("text_config")
    said = [part.get("tie_word_embeddings") for part in (config, text) if isinstance(part, dict)]
    return not (False in said and True not in said)
