"""Tiny configurations of every family, as (transformers' model_type, changes to reference.SHAPE)."""

from typing import Any

WINDOW = 9
"""Neither a multiple of a block nor a divisor of a prompt's length."""
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.5, 1.9, 2.5],
    "long_factor": [1.0, 1.4, 2.2, 4.0, 7.0, 9.0],
}
"""Of heads of 16, of which 12 are rotated."""

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "qwen2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "gpt2": ("gpt2", {}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 24,
            "num_key_value_heads": 1,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 40,
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
        },
    ),
}
"""One of each, which all tests run."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral without a window": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2 without windows": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3 with biases and windows": (
        "qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gpt2, scores scaled by layer, other inner size": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "n_inner": 80},
    ),
    "gpt2, scores not scaled": ("gpt2", {"scale_attn_weights": False, "tie_word_embeddings": False}),
    "gemma3, every third layer global, linear rope, soft cap, biases": (
        "gemma3_text",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
            "final_logit_softcapping": 3.0,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "mixtral with a window": ("mixtral", {"num_local_experts": 2, "sliding_window": WINDOW}),
    "qwen3_moe, some layers dense, weights as they are": (
        "qwen3_moe",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
        },
    ),
    "phi3, longrope of a part, beyond the original length": (
        "phi3",
        {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE, "tie_word_embeddings": True},
    ),
    "phi3, longrope of a part, within the original length": (
        "phi3",
        {
            "original_max_position_embeddings": 256,
            "max_position_embeddings": 256,
            "rope_parameters": LONGROPE,
        },
    ),
    "phi3, longrope with its own factor": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {**LONGROPE, "attention_factor": 1.3, "factor": 4.0},
        },
    ),
}
"""Other settings, which are compared once."""

_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
"""Keys of other dimensions than values."""
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2}
UNDECLARED: dict[str, tuple[str, dict[str, Any]]] = {
    "biogpt": ("biogpt", {}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "cohere2": ("cohere2", {"sliding_window": WINDOW, "num_hidden_layers": 4}),
    "ctrl, a bias of the tied head": ("ctrl", {"dff": 96}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 4.0,
            "query_pre_attn_scalar": 20,
        },
    ),
    "gemma4, layers of two shapes": (
        "gemma4_text",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 96,
        },
    ),
    "glm4": ("glm4", {"head_dim": 16}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_oss, sinks": (
        "gpt_oss",
        {"head_dim": 16, "sliding_window": WINDOW, "num_local_experts": 5, "num_experts_per_tok": 2},
    ),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "granitemoe": ("granitemoe", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "minicpm3, latent attention": ("minicpm3", _LATENT),
    "olmo3": ("olmo3", {"sliding_window": WINDOW, "num_hidden_layers": 4}),
    "olmoe": ("olmoe", _EXPERTS),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 32}),
    "phi": ("phi", {}),
    "qwen2_moe": (
        "qwen2_moe",
        {**_EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
}
"""Families that Tern computes in transformers' code, one for each thing they do; `sweep.py` tries all."""
