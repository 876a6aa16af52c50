"""Other sizes of the published families, by what is different from the one in published.py.

The text parts of Gemma 3 are what is left of the published totals without the vision tower (416,866,032) and
the projector (1,152 times one more than the hidden size).
"""

from typing import Any

from tests.worker.published import PUBLISHED, Published


def _size(
    base: str, num_parameters: int, kv_numbers: int, max_len: int | None = None, **changes: Any
) -> Published:
    """As `base`, but for these settings. KV numbers of one token, over all layers."""
    known = PUBLISHED[base]
    itemsize = 4 if base == "gpt2" else 2
    config = {**known.config, **changes}
    return Published(num_parameters, kv_numbers * itemsize, max_len or known.max_len, config)


def _shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def _gpt2(size: int, layers: int, heads: int) -> dict[str, int]:
    return {"n_embd": size, "n_layer": layers, "n_head": heads}


_LLAMA_2 = {"vocab_size": 32000, "rope_scaling": None, "rope_theta": 1e4, "max_position_embeddings": 4096}
_LLAMA_32 = {**PUBLISHED["Llama-3.1-8B"].config["rope_scaling"], "factor": 32.0}
_152K = {"vocab_size": 152064, "tie_word_embeddings": False}
_TIED, _UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
_PHI_3 = {"vocab_size": 32064, "tie_word_embeddings": False, "partial_rotary_factor": None}
_PHI_3_LONG: dict[str, Any] = {
    "rope_scaling": {"type": "longrope", "long_factor": [1.1] * 48, "short_factor": [1.0] * 48},
}


def _gemma3(text: dict[str, Any]) -> dict[str, Any]:
    """As the sizes that can also see are published: with defaults left out."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
            **text,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }


SIZES = {
    "Llama-2-7B": _size(
        "Llama-3.1-8B", 6_738_415_616, 2 * 32 * 4096, 4096, **_shape(4096, 11008, 32, 32, 32), **_LLAMA_2
    ),
    "Llama-2-13B": _size(
        "Llama-3.1-8B", 13_015_864_320, 2 * 40 * 5120, 4096, **_shape(5120, 13824, 40, 40, 40), **_LLAMA_2
    ),
    "Llama-2-70B": _size(
        "Llama-3.1-8B", 68_976_648_192, 2 * 80 * 1024, 4096, **_shape(8192, 28672, 80, 64, 8), **_LLAMA_2
    ),
    "Llama-3.1-70B": _size("Llama-3.1-8B", 70_553_706_496, 2 * 80 * 1024, **_shape(8192, 28672, 80, 64, 8)),
    "Llama-3.2-1B": _size(
        "Llama-3.1-8B", 1_235_814_400, 2 * 16 * 512, rope_scaling=_LLAMA_32, head_dim=64,
        **_shape(2048, 8192, 16, 32, 8), **_TIED,
    ),
    "Llama-3.2-3B": _size(
        "Llama-3.1-8B", 3_212_749_824, 2 * 28 * 1024, rope_scaling=_LLAMA_32, head_dim=128,
        **_shape(3072, 8192, 28, 24, 8), **_TIED,
    ),
    "Mistral-7B-v0.3": _size(
        "Mistral-7B-v0.1", 7_248_023_552, 2 * 32 * 1024, vocab_size=32768, sliding_window=None, rope_theta=1e6
    ),
    "Mistral-Nemo-12B": _size(
        "Mistral-7B-v0.1", 12_247_782_400, 2 * 40 * 1024, 131072, vocab_size=131072, sliding_window=None,
        rope_theta=1e6, head_dim=128, max_position_embeddings=131072, **_shape(5120, 14336, 40, 32, 8),
    ),
    "Qwen2.5-1.5B": _size("Qwen2.5-0.5B", 1_543_714_304, 2 * 28 * 256, **_shape(1536, 8960, 28, 12, 2)),
    "Qwen2.5-3B": _size("Qwen2.5-0.5B", 3_085_938_688, 2 * 36 * 256, **_shape(2048, 11008, 36, 16, 2)),
    "Qwen2.5-7B": _size(
        "Qwen2.5-0.5B", 7_615_616_512, 2 * 28 * 512, **_152K, **_shape(3584, 18944, 28, 28, 4)
    ),
    "Qwen2.5-14B": _size(
        "Qwen2.5-0.5B", 14_770_033_664, 2 * 48 * 1024, **_152K, **_shape(5120, 13824, 48, 40, 8)
    ),
    "Qwen2.5-32B": _size(
        "Qwen2.5-0.5B", 32_763_876_352, 2 * 64 * 1024, **_152K, **_shape(5120, 27648, 64, 40, 8)
    ),
    "Qwen2.5-72B": _size(
        "Qwen2.5-0.5B", 72_706_203_648, 2 * 80 * 1024, **_152K, **_shape(8192, 29568, 80, 64, 8)
    ),
    "Qwen3-1.7B": _size("Qwen3-0.6B", 1_720_574_976, 2 * 28 * 1024, **_shape(2048, 6144, 28, 16, 8)),
    "Qwen3-4B": _size("Qwen3-0.6B", 4_022_468_096, 2 * 36 * 1024, **_shape(2560, 9728, 36, 32, 8)),
    "Qwen3-8B": _size(
        "Qwen3-0.6B", 8_190_735_360, 2 * 36 * 1024, **_shape(4096, 12288, 36, 32, 8), **_UNTIED
    ),
    "Qwen3-14B": _size(
        "Qwen3-0.6B", 14_768_307_200, 2 * 40 * 1024, **_shape(5120, 17408, 40, 40, 8), **_UNTIED
    ),
    "Qwen3-32B": _size(
        "Qwen3-0.6B", 32_762_123_264, 2 * 64 * 1024, **_shape(5120, 25600, 64, 64, 8), **_UNTIED
    ),
    "Phi-3-mini-4k": _size(
        "Phi-4-mini", 3_821_079_552, 2 * 32 * 3072, 4096, rope_scaling=None, sliding_window=2047,
        max_position_embeddings=4096, **_shape(3072, 8192, 32, 32, 32), **_PHI_3,
    ),
    "Phi-3-mini-128k": _size(
        "Phi-4-mini", 3_821_079_552, 2 * 32 * 3072, **_shape(3072, 8192, 32, 32, 32), **_PHI_3, **_PHI_3_LONG
    ),
    "Phi-4": _size(
        "Phi-4-mini", 14_659_507_200, 2 * 40 * 1280, 16384, rope_scaling=None, rope_theta=250000,
        sliding_window=None, max_position_embeddings=16384, original_max_position_embeddings=16384,
        **_shape(5120, 17920, 40, 40, 10), **{**_PHI_3, "vocab_size": 100352},
    ),
    "gpt2-medium": _size("gpt2", 354_823_168, 2 * 24 * 1024, **_gpt2(1024, 24, 16)),
    "gpt2-large": _size("gpt2", 774_030_080, 2 * 36 * 1280, **_gpt2(1280, 36, 20)),
    "gpt2-xl": _size("gpt2", 1_557_611_200, 2 * 48 * 1600, **_gpt2(1600, 48, 25)),
    "Mixtral-8x22B": _size(
        "Mixtral-8x7B", 140_620_634_112, 2 * 56 * 1024, 65536, max_position_embeddings=65536,
        **_shape(6144, 16384, 56, 48, 8),
    ),
    "Gemma-3-4B, text part": Published(
        3_880_263_168, 2 * 34 * 1024 * 2, 131072,
        _gemma3({"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}),
    ),
    "Gemma-3-12B, text part": Published(
        11_766_034_176, 2 * 48 * 2048 * 2, 131072, _gemma3(_shape(3840, 15360, 48, 16, 8))
    ),
    "Gemma-3-27B, text part": Published(
        27_009_346_304, 2 * 62 * 2048 * 2, 131072,
        _gemma3({**_shape(5376, 21504, 62, 32, 16), "head_dim": 128, "query_pre_attn_scalar": 168}),
    ),
}  # fmt: skip
