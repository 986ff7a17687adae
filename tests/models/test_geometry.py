import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from exo_cli.errors import BadData
from exo_cli.models.families import FAMILIES
from exo_cli.models.geometry import Format, geometry
from tests.support import tiny_models

# Shapes that no two dimensions share, beside those of tiny_families.
ODD: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 8}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": None, "head_dim": None},
        {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8},
    ],
    "mistral": [{"head_dim": 32}],
    "qwen2": [{"tie_word_embeddings": False, "head_dim": 8}],
    "qwen3": [{"tie_word_embeddings": False, "head_dim": 24}],
    "qwen3_moe": [{"mlp_only_layers": [2], "decoder_sparse_step": 2, "num_experts_per_tok": 3}],
    "qwen3_next": [{"full_attention_interval": 4, "linear_value_head_dim": 32}, {"mlp_only_layers": [1]}],
    "deepseek_v3": [{"q_lora_rank": None}, {"n_shared_experts": 2, "first_k_dense_replace": 2}],
    "kimi_k2": [{"attention_bias": True, "n_shared_experts": None}, {"moe_layer_freq": 2}],
    "glm4_moe": [{"use_qk_norm": False, "attention_bias": True, "n_shared_experts": 2}],
    "gpt_oss": [{"num_experts_per_tok": 3}],
    "mixtral": [{"tie_word_embeddings": True}],
    "phi3": [{"tie_word_embeddings": True}],
    "gemma2": [{"head_dim": 32}],
    "gemma3_text": [{"sliding_window_pattern": 3}],
}


def config(family: str, **changes: Any) -> dict[str, Any]:
    told_as = {"kimi_k2": "deepseek_v3", "mistral": "llama"}.get(family, family)
    made = {**tiny_models.config(told_as), **changes, "model_type": family}
    if family == "gemma3":
        made["text_config"] = {**made["text_config"], **changes}
    return made


CASES = [
    pytest.param(config(family, **changes), id=f"{family}-{number}")
    for family in sorted(FAMILIES)
    for number, changes in enumerate([{}, *VARIANTS.get(family, [])])
]


def reference(made: dict[str, Any]) -> nn.Module:
    """mlx-lm's own class, as it is after a checkpoint was loaded."""
    family = mlx_lm.utils.MODEL_REMAPPING.get(made["model_type"], made["model_type"])
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(dict(made)))
    if family.startswith("gemma3"):
        # Tied by what a checkpoint lacks, not by its config.json.
        inner = model.language_model if family == "gemma3" else model
        inner.sanitize({})
    return model


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix("language_model.").removeprefix("model."): array.shape
        for name, array in tree_flatten(model.parameters())
    }


@pytest.mark.parametrize("made", CASES)
def test_every_tensor_is_as_mlx_lm_makes_it(made: dict[str, Any]) -> None:
    found = geometry(made)
    expected = shapes(reference(made))
    assert {name: weight.shape for name, weight in found.weights()} == expected
    assert found.is_tied == ("lm_head.weight" not in expected)
    assert found.total_parameters == sum(
        array.size for _, array in tree_flatten(reference(made).parameters())
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(("bits", "group"), [(4, 64), (4, 32), (8, 64), (3, 64)])
def test_bytes_are_those_of_mlx_lms_conversion(family: str, bits: int, group: int) -> None:
    made = config(family, **ODD)
    model = reference(made)
    model.set_dtype(mx.bfloat16)
    quantized, _ = mlx_lm.utils.quantize_model(model, dict(made), group, bits)
    found = geometry(made)
    form = Format(bits, group)
    assert found.weight_bytes(form) == sum(array.nbytes for _, array in tree_flatten(quantized.parameters()))
    by_layer = [
        sum(array.nbytes for _, array in tree_flatten(layer.parameters())) for layer in quantized.layers
    ]
    assert list(found.layer_bytes(form)) == by_layer
    assert found.weight_bytes(Format()) == 2 * found.total_parameters


def used_bytes(cache: Any) -> int:
    """Without the room that mlx-lm's caches keep for tokens to come."""
    if hasattr(cache, "cache"):
        return sum(array.nbytes for array in cache.cache if array is not None)
    used = min(cache.offset, getattr(cache, "max_size", cache.offset))
    return sum(array[..., :used, :].nbytes for array in (cache.keys, cache.values))


@pytest.mark.parametrize("made", CASES)
def test_the_cache_is_as_large_as_mlx_lms(made: dict[str, Any]) -> None:
    model = reference(made)
    found = geometry(made)
    cache = make_prompt_cache(model)
    # One token at a time: a window then holds what it needs and no more.
    for tokens in range(1, 15):
        model(mx.array([[tokens]]), cache=cache)
        assert found.cache_bytes(tokens, item_bytes=4) == sum(map(used_bytes, cache)), tokens
    if all(layer.cache.window is None for layer in found.layers):
        grown = found.cache_bytes(100) - found.cache_bytes(99)
        assert grown == found.cache_bytes_per_token()


def test_what_one_token_reads() -> None:
    dense = geometry(config("llama", tie_word_embeddings=True))
    assert dense.active_parameters == dense.total_parameters
    untied = geometry(config("llama"))
    assert untied.active_parameters == untied.total_parameters - untied.embedding_parameters
    assert untied.head_parameters == untied.embedding_parameters
    made = config("qwen3_moe")
    experts, used = made["num_experts"], made["num_experts_per_tok"]
    routed = sum(
        array.size for name, array in tree_flatten(reference(made).parameters()) if "switch_mlp" in name
    )
    mixture = geometry(made)
    idle = routed * (experts - used) // experts
    assert mixture.active_parameters == mixture.total_parameters - mixture.embedding_parameters - idle


def test_layers_that_predict_further_tokens_stand_apart() -> None:
    made = config("deepseek_v3")
    plain = geometry(made)
    found = geometry({**made, "num_nextn_predict_layers": 1})
    assert found.total_parameters == plain.total_parameters
    hidden = made["hidden_size"]
    last = sum(weight.items for weight in plain.layers[-1].weights.values())
    # README_WEIGHTS.md of DeepSeek-V3: two norms, their projection, a layer like the last, a norm.
    assert found.further_parameters == last + 3 * hidden + 2 * hidden * hidden
    assert found.further_active_parameters < found.further_parameters
    assert plain.further_parameters == 0


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"model_type": "rwkv99"}, "not known here"),
        ({"model_type": None}, "not known here"),
        ({}, "not known here"),
        ({**config("llama"), "hidden_size": "64"}, "makes no llama model"),
        ({**config("llama"), "num_attention_heads": 0}, "llama"),
        ({**config("mixtral"), "num_experts_per_tok": 9}, "9 of 4 experts"),
        ({key: value for key, value in config("llama").items() if key != "vocab_size"}, "vocab_size"),
    ],
)
def test_a_config_that_makes_no_model(broken: dict[str, Any], said: str) -> None:
    with pytest.raises(BadData, match=said):
        geometry(broken)
