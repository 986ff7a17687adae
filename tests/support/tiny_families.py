"""What each of mlx-lm's families wants in a tiny config.json: data for tiny_models.

COMMON is understood by most; FAMILIES holds what one wants beside it or otherwise.
"""

from typing import Any

LAYERS = 4
HIDDEN = 64
VOCABULARY = 96

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": 8,
    "partial_rotary_factor": 0.5,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "n_group": 2,
    "topk_group": 1,
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "moe_topk": 2,
    # latent attention
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    # linear attention and state-space layers
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "conv_kernel": 4,
    "state_size": 16,
    "ssm_state_size": 16,
    "use_conv_bias": True,
    "use_bias": False,
    "conv_bias": False,
    "n_groups": 1,
    # names of the older families
    "n_embd": HIDDEN,
    "n_head": 4,
    "n_layer": LAYERS,
    "n_positions": 256,
    "n_ctx": 256,
    "n_inner": 128,
    "num_layers": LAYERS,
    "eos_token_id": 1,
}


SLIDING_FIRST = ["sliding_attention", "full_attention"] * (LAYERS // 2)
CONV_FIRST = ["conv", "full_attention"] * (LAYERS // 2)
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}
LLAMA4_SCALE = {"llama_4_scaling_beta": 0.1, "rope_theta": 10000.0}
BY_TYPE = {
    "full_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 1.0,
    "attention_multiplier": 0.1,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
}
KIMI_LINEAR: dict[str, Any] = {
    "linear_attn_config": {
        "kda_layers": [1, 3],
        "full_attn_layers": [2, 4],
        "num_heads": 4,
        "head_dim": 16,
        "short_conv_kernel_size": 4,
    },
    "model_max_length": 256,
    "num_experts_per_token": 2,
}
LONGCAT: dict[str, Any] = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "ffn_hidden_size": 64,
    "expert_ffn_hidden_size": 32,
    "zero_expert_num": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}
LLAMA4: dict[str, Any] = {
    "attention_chunk_size": 8,
    "interleave_moe_layer_step": 2,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 96,
    "rope_scaling": None,
    "use_qk_norm": True,
    "no_rope_layers": [1, 1, 1, 0],
}
GEMMA3N: dict[str, Any] = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "rope_local_base_freq": 10000.0,
    "final_logit_softcapping": 30.0,
    "layer_types": SLIDING_FIRST + SLIDING_FIRST[:2],
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
    "hidden_size_per_layer_input": 32,
    "altup_num_inputs": 2,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 8,
}
GEMMA4: dict[str, Any] = {
    "global_head_dim": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 2,
    "num_hidden_layers": 6,
    "hidden_size_per_layer_input": 32,
    "layer_types": SLIDING_FIRST + SLIDING_FIRST[:2],
    "tie_word_embeddings": True,
    "use_double_wide_mlp": False,
}
GEMMA3: dict[str, Any] = {
    "query_pre_attn_scalar": 16,
    "sliding_window_pattern": 2,
    "rope_local_base_freq": 10000.0,
    "rope_global_base_freq": 1000000.0,
}
BAILING: dict[str, Any] = {
    "layer_group_size": 2,
    "group_norm_size": 1,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 0.5,
}
DEEPSEEK: dict[str, Any] = {"num_key_value_heads": 4, "rope_scaling": None}
SPARSE: dict[str, Any] = {"index_head_dim": 32, "index_n_heads": 2, "index_topk": 4}
MOE_LISTS: dict[str, Any] = {"layer_types": SLIDING_FIRST, "is_moe_layer": [False, True, True, True]}


def text(model_type: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A wrapper's config: the language model's settings one floor down."""
    return {"text_config": {**COMMON, **settings, "model_type": model_type}}


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_moe": {},
    "qwen3_next": {"partial_rotary_factor": 0.25},
    "deepseek_v3": DEEPSEEK,
    "gemma3_text": GEMMA3,
    "gpt_oss": {"layer_types": SLIDING_FIRST, "rope_scaling": {**YARN, "truncate": False}},
    "mixtral": {},
    "phi3": {},
    "glm4_moe": {"use_qk_norm": True, "rope_scaling": None},
    "nemotron_h": {
        "hybrid_override_pattern": ["M", "*", "M", "-"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "mamba_proj_bias": False,
        "time_step_limit": [0.0, 1e9],
    },
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
    },
    "granitemoehybrid": {
        **GRANITE,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "shared_intermediate_size": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
        "position_embedding_type": "rope",
    },
    # the rest is for the sweep over all of them
    "afm7": {
        "hidden_dim": HIDDEN,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
    },
    "afmoe": {"layer_types": SLIDING_FIRST, "num_dense_layers": 1, "n_group": 1},
    "apertus": {"post_norm": False, "qk_norm": True},
    "baichuan_m1": {"sliding_window_layers": [1, 3], "conv_window": 2},
    "bailing_hybrid": BAILING,
    "bailing_moe_linear": {**BAILING, "topk_group": 1},
    "dbrx": {
        "d_model": HIDDEN,
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "n_layers": LAYERS,
        "n_heads": 4,
    },
    "deepseek_v2": {**DEEPSEEK, "topk_method": "greedy", "rope_scaling": YARN},
    "deepseek_v32": {**DEEPSEEK, **SPARSE},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "exaone4": {"rope_scaling": {"rope_type": "default"}, "sliding_window_pattern": "LG"},
    "exaone_moe": MOE_LISTS,
    "gear": {"layer_types": ["conv_mixer", "full_attention", "sliding_attention", "full_attention"]},
    "gemma3": text("gemma3_text", GEMMA3),
    "gemma3n": text("gemma3n_text", GEMMA3N),
    "gemma4": text("gemma4_text", GEMMA4),
    "gemma4_text": GEMMA4,
    "glm_moe_dsa": {**DEEPSEEK, **SPARSE, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25},
    "gptj": {"rotary_dim": 8},
    "granite": GRANITE,
    "granitemoe": GRANITE,
    "hunyuan": {
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
    },
    "kimi_k25": text("deepseek_v3", DEEPSEEK),
    "kimi_k3": text(
        "kimi_linear",
        {
            **KIMI_LINEAR,
            "hidden_act": "situ",
            "activation_situ_beta": 1.0,
            "attn_res_block_size": 2,
            "n_group": 1,
        },
    ),
    "kimi_linear": KIMI_LINEAR,
    "kimi_vl": text("deepseek_v3", DEEPSEEK),
    "lfm2": {
        "conv_L_cache": 3,
        "block_dim": HIDDEN,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": CONV_FIRST,
    },
    "lfm2_moe": {
        "conv_L_cache": 3,
        "use_expert_bias": True,
        "num_dense_layers": 1,
        "layer_types": CONV_FIRST,
    },
    "lfm2-vl": text(
        "lfm2",
        {
            "conv_L_cache": 3,
            "block_dim": HIDDEN,
            "block_multiple_of": 32,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "layer_types": CONV_FIRST,
        },
    ),
    "lille-130m": {"block_size": 256, "n_kv_heads": 2},
    "llama4": text("llama4_text", LLAMA4),
    "llama4_text": LLAMA4,
    "longcat_flash": LONGCAT,
    "longcat_flash_ngram": {**LONGCAT, "ngram_vocab_size_ratio": 2},
    "mamba": {"time_step_rank": 4, "intermediate_size": 128},
    "mamba2": {"num_heads": 8, "time_step_limit": [0.0, 1e9], "time_step_rank": 4, "intermediate_size": 128},
    "mellum": {"layer_types": SLIDING_FIRST, "rope_parameters": BY_TYPE},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": 8,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "minicpm": {"dim_model_base": HIDDEN, "scale_depth": 1.4, "scale_emb": 2.0},
    "minicpm3": {
        "dim_model_base": HIDDEN,
        "scale_depth": 1.4,
        "scale_emb": 2.0,
        "rope_scaling": {
            "type": "longrope",
            "original_max_position_embeddings": 128,
            "long_factor": [1.0] * 8,
            "short_factor": [1.0] * 8,
        },
    },
    "minimax": {"shared_intermediate_size": 0, "rotary_dim": 8},
    "minimax_m3_vl": text(
        "minimax_m3_vl_text",
        {
            "dense_intermediate_size": 96,
            "shared_intermediate_size": 32,
            "index_n_heads": 2,
            "index_head_dim": 16,
            "index_block_size": 4,
            "index_topk_blocks": 2,
            "moe_layer_freq": [0, 1, 1, 1],
        },
    ),
    "ministral3": {
        "layer_types": SLIDING_FIRST,
        "rope_parameters": {**YARN, **LLAMA4_SCALE, "original_max_position_embeddings": 4},
    },
    "mistral3": text("llama", {}),
    "mistral4": {
        "rope_parameters": {**YARN, **LLAMA4_SCALE, "original_max_position_embeddings": 4},
        "num_key_value_heads": 4,
    },
    "muse_spark": text(
        "muse_spark_text",
        {
            "post_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 10000.0},
            "layer_rope_theta": [10000.0, 0.0, 10000.0, 0.0],
            "layer_types": SLIDING_FIRST,
            "final_logit_softcapping": 30.0,
            "output_multiplier": 1.0,
            "moe_hidden_size": 32,
            "num_shared_experts": 0,
        },
    ),
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"replace_with_linear": True}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True}},
        ]
    },
    "olmo_hybrid": {
        "linear_allow_neg_eigval": True,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_value_heads": 2,
    },
    "openelm": {
        "num_transformer_layers": LAYERS,
        "model_dim": HIDDEN,
        "ffn_dim_divisor": 32,
        "num_query_heads": [4, 4, 4, 4],
        "num_kv_heads": [2, 2, 2, 2],
        "ffn_multipliers": [1.0, 1.0, 2.0, 2.0],
    },
    "phi3small": {
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 96,
        "gegelu_limit": 20.0,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "phixtral": {"num_vocab": VOCABULARY, "model_dim": HIDDEN, "num_heads": 4, "rotary_dim": 8},
    "pixtral": text("llama", {}),
    "plamo": {"n_shared_head": 2},
    "plamo2": {
        "hidden_size_per_head": 16,
        "mamba_num_heads": 4,
        "mamba_d_state": 16,
        "mamba_step": 2,
        "attention_window_size": 8,
    },
    "qwen": {"kv_channels": 16},
    "qwen2_vl": text("qwen2", {}),
    "qwen3_5": text("qwen3_5_text", {"partial_rotary_factor": 0.25}),
    "qwen3_5_moe": text("qwen3_5_text", {"partial_rotary_factor": 0.25}),
    "qwen3_vl": text("qwen3", {}),
    "qwen3_vl_moe": text("qwen3_moe", {}),
    "recurrent_gemma": {
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "attention_window_size": 8,
        "block_types": ["recurrent", "attention"],
        "num_key_value_heads": 1,
    },
    "rwkv7": {
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "spark2_5": {"rope_parameters": BY_TYPE, "layer_types": SLIDING_FIRST},
    "stablelm": {"use_qkv_bias": True},
    "step3p5": {
        "num_attention_groups": 2,
        "layer_types": SLIDING_FIRST,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "share_expert_dim": 32,
        "moe_layers_enum": "1,2,3",
        "partial_rotary_factors": [0.5, 1.0, 0.5, 1.0],
    },
}
"""Families that are not named are tried with COMMON alone."""

TWELVE: dict[str, str] = {
    "Llama": "llama",
    "Qwen2": "qwen2",
    "Qwen3": "qwen3",
    "Qwen3-MoE": "qwen3_moe",
    "Qwen3-Next": "qwen3_next",
    "DeepSeek V3": "deepseek_v3",
    "Gemma 3": "gemma3_text",
    "gpt-oss": "gpt_oss",
    "Mixtral": "mixtral",
    "Phi-3": "phi3",
    "GLM4-MoE": "glm4_moe",
    "a state-space hybrid": "falcon_h1",
}
"""The families that every way of running a model is compared on."""
