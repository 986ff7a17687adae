"""What a model weighs, told from its config.json alone: parameters, bytes, and cache by token.

Counts every tensor as mlx-lm keeps it once a checkpoint is loaded: embedding, head (none where it is
tied), norms, biases, routers, shared experts. Layers that only predict further tokens, which mlx-lm does
not load, are counted apart. What a layer of a family is made of stands in families.py. Knows nothing of
files, of names for models, or of machines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from exo_cli.errors import BadData
from exo_cli.models.families import FAMILIES
from exo_cli.models.parts import Config, Layer, Weight
from exo_cli.models.safetensors import shown


@dataclass(frozen=True, slots=True)
class Format:
    """How matrices are kept: `bits` None as they are, else mlx-lm's affine groups."""

    bits: int | None = None
    group_size: int = 64
    item_bytes: int = 2
    """Of what is not quantized, and of scales and biases."""

    def bytes_of(self, weight: Weight) -> int:
        """As mlx-lm's own conversion would write the tensor."""
        width = weight.shape[-1]
        if self.bits is None or not weight.is_matrix or width % self.group_size:
            return weight.items * self.item_bytes
        bits, group = (8, 64) if weight.always_8_bits else (self.bits, self.group_size)
        return weight.items * bits // 8 + 2 * (weight.items // group) * self.item_bytes


@dataclass(frozen=True, slots=True)
class Geometry:
    """A model as a table of tensors, by where they belong."""

    embedding: dict[str, Weight]
    layers: tuple[Layer, ...]
    ends: dict[str, Weight]
    """After the last layer: the norm, and the head where it is not the embedding again."""
    further: tuple[Layer, ...]
    """Layers that predict further tokens, which nobody here runs."""

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding."""
        return not any("head" in name for name in self.ends)

    @property
    def total_parameters(self) -> int:
        return sum(weight.items for _, weight in self.weights())

    @property
    def active_parameters(self) -> int:
        """What one token's step reads: a few of the experts, and one row of an embedding that is no head."""
        whole = sum(weight.active_items for _, weight in self.weights())
        return whole if self.is_tied else whole - self.embedding_parameters

    @property
    def embedding_parameters(self) -> int:
        return sum(weight.items for weight in self.embedding.values())

    @property
    def head_parameters(self) -> int:
        """Nothing where the head is the embedding."""
        return sum(weight.items for name, weight in self.ends.items() if "head" in name)

    @property
    def further_parameters(self) -> int:
        return sum(weight.items for layer in self.further for weight in layer.weights.values())

    @property
    def further_active_parameters(self) -> int:
        return sum(weight.active_items for layer in self.further for weight in layer.weights.values())

    def weights(self) -> Iterator[tuple[str, Weight]]:
        """Every tensor that is loaded, with mlx-lm's name for it below the layers."""
        yield from self.embedding.items()
        for number, layer in enumerate(self.layers):
            yield from ((f"layers.{number}.{name}", weight) for name, weight in layer.weights.items())
        yield from self.ends.items()

    def weight_bytes(self, form: Format) -> int:
        return sum(form.bytes_of(weight) for _, weight in self.weights())

    def layer_bytes(self, form: Format) -> tuple[int, ...]:
        return tuple(sum(map(form.bytes_of, layer.weights.values())) for layer in self.layers)

    def cache_bytes(self, tokens: int, *, item_bytes: int = 2) -> int:
        """What one request of so many tokens keeps, in all layers."""
        return sum(layer.cache.bytes_at(tokens, item_bytes) for layer in self.layers)

    def cache_bytes_per_token(self, *, item_bytes: int = 2) -> int:
        """What a further token adds while no window is full."""
        return sum(layer.cache.items_per_token * item_bytes for layer in self.layers)


def geometry(config: Config) -> Geometry:
    """The geometry of a config.json; BadData for a family that is not known or numbers that are missing."""
    config = text_config(config)
    family = config.get("model_type")
    build = FAMILIES.get(family) if isinstance(family, str) else None
    if build is None:
        raise BadData(
            f"the geometry of the model family {shown(family)} is not known here",
            hint=f"Known are {', '.join(sorted(FAMILIES))}.",
        )
    try:
        built = build(config)
        found = Geometry(built.embedding, built.layers, built.ends, built.further)
    except KeyError as error:
        raise BadData(f"config.json does not say {error.args[0]}") from error
    except (TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError) as error:
        raise BadData(f"config.json makes no {family} model: {error}"[:300]) from error
    for name, weight in found.weights():
        if not all(type(size) is int and size > 0 for size in weight.shape):
            raise BadData(f"config.json makes no {family} model: {name} would be {shown(weight.shape)}")
    return found


def text_config(config: Config) -> dict[str, Any]:
    """The language model's settings of one that also sees or hears, over those of the whole."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else dict(config)
