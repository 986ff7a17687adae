"""How large a model is, layer by layer, told from its directory; pure but for what the directory holds.

An estimate for splitting: the engine knows better and refuses what does not fit. Knows nothing of nodes.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

from exo_cli.errors import BadData
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.geometry import text_config
from exo_cli.models.safetensors import TensorInfo
from exo_cli.planning.work import Work, work_of, work_of_sizes

_NUMBERED: Final = re.compile(r"((?:[^.]*[^.0-9][^.]*\.)+?)(\d{1,4})\.")
_LAYERS: Final = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_CONTEXT: Final = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_EMBEDDING: Final = frozenset(("embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embeddings"))
_HEAD: Final = frozenset(("lm_head", "embed_out"))
_KV_ITEM_BYTES: Final = 4
"""float32, in which `exact` keeps its caches."""
_DEFAULT_CONTEXT: Final = 4096


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a split needs to know of a model."""

    layer_bytes: tuple[int, ...]
    first_bytes: int
    """Beside the layers, at the first stage: the embedding and what belongs to no layer."""
    last_bytes: int
    kv_bytes_per_token: int
    """Of one layer."""
    context: int
    """The longest that the model knows."""
    known: Work | None = field(default=None, repr=False)
    """The same from the model's geometry, where its family's is known."""

    @property
    def work(self) -> Work:
        """As the planner takes it; where only sizes are known, every weight is read at every step."""
        if self.known is not None:
            return self.known
        return work_of_sizes(
            self.layer_bytes,
            first=self.first_bytes,
            last=self.last_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            width=0,
            longest=self.context,
        )

    @property
    def layers(self) -> int:
        return len(self.layer_bytes)


def size_of(directory: ModelDirectory) -> ModelSize:
    """Read off the tensors' names and the configuration."""
    config = text_config(directory.config)
    layers = _number(config, _LAYERS)
    if layers is None:
        raise BadData(
            f"{directory.path / 'config.json'} does not say how many layers the model has",
            hint="exo looks for num_hidden_layers.",
        )
    stacks: dict[str, dict[int, int]] = {}
    embedding, head, beside = 0, 0, 0
    for name, tensor in directory.tensors.items():
        numbered = _NUMBERED.match(name)
        parts = set(name.split("."))
        if numbered is not None:
            stack = stacks.setdefault(numbered[1], {})
            stack[int(numbered[2])] = stack.get(int(numbered[2]), 0) + _held_bytes(tensor)
        elif parts & _EMBEDDING:
            embedding += _held_bytes(tensor)
        elif parts & _HEAD:
            head += _held_bytes(tensor)
        else:
            beside += _held_bytes(tensor)
    main = [stack for stack in stacks.values() if stack.keys() >= set(range(layers))]
    chosen = max(main, key=lambda stack: sum(stack.values()), default=None)
    for stack in stacks.values():
        if stack is not chosen:
            beside += sum(stack.values())
    if chosen is None:
        # Layers whose tensors are named in a way that is not understood: all alike.
        layer_bytes = [-(-beside // layers)] * layers
        beside = 0
    else:
        layer_bytes = [chosen[layer] for layer in range(layers)]
        # Heads that predict further tokens are numbered after the layers.
        head += sum(size for layer, size in chosen.items() if layer >= layers)
    return ModelSize(
        layer_bytes=tuple(layer_bytes),
        first_bytes=embedding + beside,
        last_bytes=(head or embedding) + beside,
        kv_bytes_per_token=_kv_bytes(config),
        context=_number(config, _CONTEXT) or _DEFAULT_CONTEXT,
        known=_geometry(directory, layers),
    )


def _held_bytes(tensor: TensorInfo) -> int:
    """In an engine's memory, where numbers of 16 bits become float32."""
    return tensor.nbytes * (2 if tensor.dtype in ("F16", "BF16") else 1)


def _geometry(directory: ModelDirectory, layers: int) -> Work | None:
    try:
        found = work_of(directory.config)
    except BadData:
        return None
    return found if len(found.layers) == layers else None


def _number(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    found = (config.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)


def _kv_bytes(config: dict[str, Any]) -> int:
    heads = _number(config, ("num_attention_heads", "n_head", "num_heads")) or 1
    hidden = _number(config, ("hidden_size", "n_embd", "d_model")) or 1
    kv_heads = _number(config, ("num_key_value_heads", "n_head_kv", "num_kv_heads")) or heads
    head = _number(config, ("head_dim",)) or -(-hidden // heads)
    latent = _number(config, ("kv_lora_rank",))
    if latent is not None:
        return (latent + (_number(config, ("qk_rope_head_dim",)) or 0)) * _KV_ITEM_BYTES
    return 2 * kv_heads * head * _KV_ITEM_BYTES
