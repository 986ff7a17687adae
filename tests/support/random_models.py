"""The catalogue's models with random weights, shrunken: every setting stays, only the sizes go down."""

import json
from typing import Any, Final

from exo_cli.models import catalogue
from exo_cli.models.random_model import RandomModel, random_model

LAYERS: Final = 4
_SIZES: Final = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
}
_AT_MOST: Final = {
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": 8,
    "sliding_window_pattern": 2,
    "full_attention_interval": 2,
}
ROWS: Final = {row.config["model_type"]: row for row in reversed(catalogue.rows())}
"""Of each family the first in the catalogue."""


def config(family: str, **changes: Any) -> dict[str, Any]:
    """The config.json of the family's first model, made small."""
    return {**_small(ROWS[family].config), **changes}


def _small(settings: dict[str, Any]) -> dict[str, Any]:
    made = dict(settings)
    for key, value in settings.items():
        if key in _SIZES and value is not None:
            made[key] = _SIZES[key]
        elif key in _AT_MOST and value is not None:
            made[key] = min(value, _AT_MOST[key])
        elif key == "num_key_value_heads":
            made[key] = 4 if value == settings["num_attention_heads"] else 2
        elif key == "layer_types":
            made[key] = value[:LAYERS]
        elif key == "text_config":
            made[key] = _small(value)
    return made


def small(
    family: str, tmp: Any, *, bits: int | None = 4, group: int | None = None, seed: int = 7, **changes: Any
) -> RandomModel:
    """Such a model; `changes` go into its config.json, which is written to the directory `tmp`."""
    path = tmp / f"{family}.json"
    path.write_text(json.dumps(config(family, **changes)))
    return random_model(path, bits=bits, group=group, seed=seed)
