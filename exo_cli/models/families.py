"""Which tensors each family of models has, by the names and shapes that mlx-lm gives them.

One function a family: from its config.json to its parts. tests/models/test_geometry.py compares every
one with mlx-lm's own class, tensor by tensor. Knows nothing of bytes and of what models are called.
"""

from collections.abc import Callable
from typing import Final

from exo_cli.models.parts import (
    Cache,
    Config,
    Layer,
    Model,
    Weight,
    Weights,
    attention,
    expert_mlp,
    gated_mlp,
    linear,
    norms,
    vector,
)

_BOTH_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS: Final = (*_BOTH_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _model(config: Config, layers: list[Layer], *, tied: bool, further: int = 0) -> Model:
    """Embedding and norm around the layers; `further` token predictors are like the last layer."""
    hidden, words = config["hidden_size"], config["vocab_size"]
    ends = norms(hidden, "norm") | ({} if tied else linear("lm_head", words, hidden))
    embedding = {"embed_tokens.weight": Weight((words, hidden), is_matrix=True)}
    # Each joins the embedding of the next token to the hidden state before its layer.
    joint = norms(hidden, "enorm", "hnorm", "shared_head.norm") | linear("eh_proj", hidden, 2 * hidden)
    extra = tuple(Layer({**layers[-1].weights, **joint}, layers[-1].cache) for _ in range(further))
    return Model(embedding, tuple(layers), ends, extra)


def _heads(config: Config) -> tuple[int, int, int, int]:
    """Width, heads, key and value heads, width of a head."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return (
        hidden,
        heads,
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or hidden // heads,
    )


def _kv(config: Config, window: int | None = None) -> Cache:
    _, _, kv_heads, head = _heads(config)
    return Cache(2 * kv_heads * head, window)


def _even(config: Config) -> Config:
    """For the families in which heads always share the width evenly."""
    return {**config, "head_dim": None}


def _kinds(config: Config) -> list[str]:
    count: int = config["num_hidden_layers"]
    return config.get("layer_types") or ["full_attention"] * count


def _llama(config: Config) -> Model:
    hidden = config["hidden_size"]
    weights = {
        **attention(*_heads(config), bias=config.get("attention_bias", False)),
        **gated_mlp("mlp", hidden, config["intermediate_size"], bias=config.get("mlp_bias", False)),
        **norms(hidden, *_BOTH_NORMS),
    }
    window = config.get("sliding_window")
    caches = [_kv(config, window if kind == "sliding_attention" else None) for kind in _kinds(config)]
    return _model(
        config, [Layer(weights, cache) for cache in caches], tied=config.get("tie_word_embeddings", True)
    )


def _qwen(config: Config, *, bias: bool, qk_norm: bool, tied: bool) -> Model:
    hidden = config["hidden_size"]
    weights = {
        **attention(*_heads(config), bias=bias, out_bias=False, qk_norm=qk_norm),
        **gated_mlp("mlp", hidden, config["intermediate_size"]),
        **norms(hidden, *_BOTH_NORMS),
    }
    layers = [Layer(weights, _kv(config))] * config["num_hidden_layers"]
    return _model(config, layers, tied=tied)


def _qwen2(config: Config) -> Model:
    tied = config.get("tie_word_embeddings", True)
    return _qwen(_even(config), bias=True, qk_norm=False, tied=tied)


def _qwen3(config: Config) -> Model:
    return _qwen(config, bias=False, qk_norm=True, tied=config["tie_word_embeddings"])


def _qwen_mlp(config: Config, number: int) -> Weights:
    """Experts, or one dense network where the configuration wants that."""
    hidden = config["hidden_size"]
    experts = config["num_experts"]
    sparse = experts > 0 and (number + 1) % config["decoder_sparse_step"] == 0
    if not sparse or number in (config.get("mlp_only_layers") or ()):
        return gated_mlp("mlp", hidden, config["intermediate_size"])
    inner, used = config["moe_intermediate_size"], config["num_experts_per_tok"]
    return {
        **linear("mlp.gate", experts, hidden, always_8_bits=True),
        **expert_mlp("mlp.switch_mlp", hidden, inner, experts, used),
    }


def _qwen3_moe(config: Config) -> Model:
    hidden = config["hidden_size"]
    weights = attention(*_heads(config), qk_norm=True) | norms(hidden, *_BOTH_NORMS)
    layers = [
        Layer(weights | _qwen_mlp(config, number), _kv(config))
        for number in range(config["num_hidden_layers"])
    ]
    return _model(config, layers, tied=config["tie_word_embeddings"])


def _qwen3_next(config: Config) -> Model:
    """Three layers with a recurrent state to each with attention."""
    hidden = config["hidden_size"]
    layers = []
    for number in range(config["num_hidden_layers"]):
        mlp = _qwen_mlp(config, number)
        if "mlp.gate.weight" in mlp:
            mlp |= gated_mlp("mlp.shared_expert", hidden, config["shared_expert_intermediate_size"])
            mlp |= linear("mlp.shared_expert_gate", 1, hidden, always_8_bits=True)
        if (number + 1) % config["full_attention_interval"]:
            mixer, cache = _delta_net(config)
        else:
            bias = config.get("attention_bias", False)
            mixer = attention(*_heads(config), bias=bias, qk_norm=True, gated=True)
            cache = _kv(config)
        layers.append(Layer(mixer | mlp | norms(hidden, *_BOTH_NORMS), cache))
    return _model(config, layers, tied=config.get("tie_word_embeddings", False))


def _delta_net(config: Config) -> tuple[Weights, Cache]:
    hidden = config["hidden_size"]
    key_heads, value_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key_head, value_head = config["linear_key_head_dim"], config["linear_value_head_dim"]
    keys, values = key_heads * key_head, value_heads * value_head
    kernel = config["linear_conv_kernel_dim"]
    convolved = 2 * keys + values
    weights = {
        "linear_attn.conv1d.weight": Weight((convolved, kernel, 1)),
        **linear("linear_attn.in_proj_qkvz", 2 * keys + 2 * values, hidden),
        **linear("linear_attn.in_proj_ba", 2 * value_heads, hidden),
        **vector("linear_attn.dt_bias", value_heads),
        **vector("linear_attn.A_log", value_heads),
        **norms(value_head, "linear_attn.norm"),
        **linear("linear_attn.out_proj", hidden, values),
    }
    cache = Cache(state_items=(kernel - 1) * convolved, float32_items=value_heads * value_head * key_head)
    return weights, cache


def _routed(config: Config) -> Weights:
    """DeepSeek's experts, whose router is never quantized and has a bias for balance."""
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    experts, used = config["n_routed_experts"], config["num_experts_per_tok"]
    found = {
        "mlp.gate.weight": Weight((experts, hidden)),
        **vector("mlp.gate.e_score_correction_bias", experts),
        **expert_mlp("mlp.switch_mlp", hidden, inner, experts, used),
    }
    shared = config.get("n_shared_experts")
    return found | (gated_mlp("mlp.shared_experts", hidden, inner * shared) if shared is not None else {})


def _with_dense_start(config: Config, mixer: Weights, cache: Cache, every: int = 1) -> list[Layer]:
    """The first layers have one dense network each, the others experts."""
    hidden = config["hidden_size"]
    weights = mixer | norms(hidden, *_BOTH_NORMS)
    dense = Layer(weights | gated_mlp("mlp", hidden, config["intermediate_size"]), cache)
    if config.get("n_routed_experts") is None:
        return [dense] * config["num_hidden_layers"]
    sparse = Layer(weights | _routed(config), cache)
    start = config.get("first_k_dense_replace", 0)
    return [
        sparse if number >= start and number % every == 0 else dense
        for number in range(config["num_hidden_layers"])
    ]


def _deepseek_v3(config: Config) -> Model:
    """Latent attention: the cache has one compressed vector a token, and the rotated part of its key."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    queries, latent = config["q_lora_rank"], config["kv_lora_rank"]
    plain, rotated, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    bias = config.get("attention_bias", False)
    width = heads * (plain + rotated)
    if queries is None:
        mixer = linear("self_attn.q_proj", width, hidden)
    else:
        mixer = {
            **linear("self_attn.q_a_proj", queries, hidden, bias=bias),
            **norms(queries, "self_attn.q_a_layernorm"),
            **linear("self_attn.q_b_proj", width, queries),
        }
    mixer |= {
        **linear("self_attn.kv_a_proj_with_mqa", latent + rotated, hidden, bias=bias),
        **norms(latent, "self_attn.kv_a_layernorm"),
        "self_attn.embed_q.weight": Weight((heads, latent, plain), is_matrix=True),
        "self_attn.unembed_out.weight": Weight((heads, value, latent), is_matrix=True),
        **linear("self_attn.o_proj", hidden, heads * value, bias=bias),
    }
    layers = _with_dense_start(config, mixer, Cache(latent + rotated), config.get("moe_layer_freq", 1))
    return _model(config, layers, tied=False, further=config.get("num_nextn_predict_layers") or 0)


def _glm4_moe(config: Config) -> Model:
    mixer = attention(
        *_heads(config), bias=config["attention_bias"], out_bias=False, qk_norm=config["use_qk_norm"]
    )
    layers = _with_dense_start(config, mixer, _kv(config))
    return _model(config, layers, tied=False, further=config.get("num_nextn_predict_layers") or 0)


def _gpt_oss(config: Config) -> Model:
    hidden, heads, kv_heads, head = _heads(config)
    experts, used = config["num_local_experts"], config["num_experts_per_tok"]
    weights = {
        **attention(hidden, heads, kv_heads, head, bias=True),
        **vector("self_attn.sinks", heads),
        **linear("mlp.router", experts, hidden, bias=True, always_8_bits=True),
        **expert_mlp("mlp.experts", hidden, config["intermediate_size"], experts, used, bias=True),
        **norms(hidden, *_BOTH_NORMS),
    }
    count = config["num_hidden_layers"]
    kinds = config.get("layer_types") or ["sliding_attention", "full_attention"] * (count // 2)
    layers = [
        Layer(weights, _kv(config, None if kind == "full_attention" else config["sliding_window"]))
        for kind in kinds
    ]
    return _model(config, layers, tied=False)


def _mixtral(config: Config) -> Model:
    config = _even(config)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    experts, used = config["num_local_experts"], config["num_experts_per_tok"]
    weights = {
        **attention(*_heads(config)),
        **linear("block_sparse_moe.gate", experts, hidden),
        **expert_mlp("block_sparse_moe.switch_mlp", hidden, inner, experts, used),
        **norms(hidden, *_BOTH_NORMS),
    }
    layers = [Layer(weights, _kv(config))] * config["num_hidden_layers"]
    return _model(config, layers, tied=config.get("tie_word_embeddings", False))


def _phi3(config: Config) -> Model:
    """Queries, keys and values in one matrix; gate and up in another."""
    hidden, heads, kv_heads, head = _heads(_even(config))
    inner = config["intermediate_size"]
    weights = {
        **linear("self_attn.qkv_proj", (heads + 2 * kv_heads) * head, hidden),
        **linear("self_attn.o_proj", hidden, heads * head),
        **linear("mlp.gate_up_proj", 2 * inner, hidden),
        **linear("mlp.down_proj", hidden, inner),
        **norms(hidden, *_BOTH_NORMS),
    }
    layers = [Layer(weights, Cache(2 * kv_heads * head))] * config["num_hidden_layers"]
    return _model(config, layers, tied=config.get("tie_word_embeddings", False))


def _gemma2(config: Config) -> Model:
    """mlx-lm keeps every layer's whole context, those with a window too."""
    hidden = config["hidden_size"]
    weights = {
        **attention(*_heads(config)),
        **gated_mlp("mlp", hidden, config["intermediate_size"]),
        **norms(hidden, *_FOUR_NORMS),
    }
    return _model(config, [Layer(weights, _kv(config))] * config["num_hidden_layers"], tied=True)


def _gemma3(config: Config) -> Model:
    """What config.json leaves out is mlx-lm's default."""
    wrapped = config["model_type"] == "gemma3" or "text_config" in config
    defaults: dict[str, int] = {"head_dim": 256, "sliding_window": 512, "sliding_window_pattern": 6}
    defaults |= (
        {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4}
        if wrapped
        else {"vocab_size": 262144, "num_attention_heads": 4, "num_key_value_heads": 1}
    )
    config = {**defaults, **config}
    hidden = config["hidden_size"]
    weights = {
        **attention(*_heads(config), qk_norm=True),
        **gated_mlp("mlp", hidden, config["intermediate_size"]),
        **norms(hidden, *_FOUR_NORMS),
    }
    pattern = config["sliding_window_pattern"]
    layers = [
        Layer(weights, _kv(config, None if number % pattern == pattern - 1 else config["sliding_window"]))
        for number in range(config["num_hidden_layers"])
    ]
    return _model(config, layers, tied=True)


FAMILIES: Final[dict[str, Callable[[Config], Model]]] = {
    "deepseek_v3": _deepseek_v3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3,
    "glm4_moe": _glm4_moe,
    "gpt_oss": _gpt_oss,
    "kimi_k2": _deepseek_v3,
    "llama": _llama,
    "mistral": _llama,
    "mixtral": _mixtral,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "qwen3_next": _qwen3_next,
}
