"""What the worker does with every causal language model of transformers: `python -m tests.parity.sweep`.

Not a test. transformers writes a tiny random float32 checkpoint of each, which is handed to a runner with
`--model-impl auto`. A line for each says: served (within 1e-4 of transformers), refused (the message), WRONG
or CRASH. Arguments are model types; without any, all. `--pictures`: of models that can also see, the text.
"""

import argparse
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging

from protocol.errors import TernError
from protocol.sampling import SamplingParams
from tests.parity.reference import TOLERANCE, tokens
from tests.worker.driver import Driver, quiet, worker_config
from worker.runner import TorchRunner

MAX_PARAMETERS = 20_000_000
"""A default that no size here reduces may be of any size."""
VOCAB_SIZE = 96
"""Small enough for every log-probability to be asked for."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "initializer_range": 0.15, "dtype": "float32", "sliding_window": 9, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4,
    "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40, "n_group": 1, "topk_group": 1, "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1, "ffn_dim": 96,
    "word_embed_proj_dim": 64, "d_model": 64, "decoder_layers": 2, "encoder_layers": 2,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_ffn_dim": 96, "encoder_ffn_dim": 96,
    "embedding_size": 64, "shared_intermediate_size": 40, "expert_ffn_hidden_size": 24, "ffn_hidden_size": 96,
    "moe_shared_expert_intermediate_size": 40, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 8,
    "attention_chunk_size": 16, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8,
    "state_size": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB_SIZE,
    "lru_width": 64, "intermediate_size_mlp": 96, "num_dense_layers": 1, "expert_hidden_size": 24,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "depth": 2, "num_attention_heads": 2,
    "num_heads": 2, "embed_dim": 32, "out_hidden_size": 64, "image_size": 28, "patch_size": 14,
    "embedding_dim": 32, "num_key_value_heads": 2, "head_dim": 16, "text_hidden_size": 64, "hidden_dim": 32,
    "projection_dim": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "d_model": 32, "output_dim": 64, "vision_output_dim": 32,
}  # fmt: skip
ALTERNATING = ["sliding_attention", "full_attention"] * 2
LATENT = ("axk2", "deepseek_v2", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3",
          "sarvam_mla", "kimi_linear", "dots3_note_text")  # fmt: skip
OVERRIDES: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in LATENT},
    **{name: {"num_key_value_heads": 4, "head_dim": 8} for name in ("deepseek_v3", "axk1", "youtu")},
    "codegen": {"rotary_dim": 8}, "gptj": {"rotary_dim": 8}, "xlnet": {"d_head": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 9, "num_layers": 4},
    "mistral4": {"num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "dots1": {"max_window_layers": 2, "n_shared_experts": 1, "layer_types": ALTERNATING},
    **{
        name: {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
        for name in ("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "glm4v_text", "glm_ocr_text")
    },
    "xmod": {"default_language": "en_XX"},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 16},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 16, "layer_types": ["attention"] * 4},
    "gemma3n_text": {"num_kv_shared_layers": 1, "layer_types": ALTERNATING,
                     "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0], "laurel_rank": 8},
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified_text": {"global_head_dim": 32},
}  # fmt: skip
"""Where the sizes do not fit together."""


def sized(default: Any, sizes: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a config of this kind has."""
    values = default.to_dict()
    known = {*values, *default.attribute_map}
    ids = {
        name: min(value, VOCAB_SIZE - 1)
        for name, value in values.items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    return {name: value for name, value in sizes.items() if name in known} | ids | more


def config_of(model_type: str) -> Any:
    kind: Any = CONFIG_MAPPING[model_type]
    whole, parts = kind(), {}
    for name in kind.sub_configs or {}:
        part = getattr(whole, name, None)
        if part is not None:
            is_text = any(word in name for word in ("text", "llm", "decoder", "language"))
            more = OVERRIDES.get(part.model_type, {}) if is_text else {}
            parts[name] = {"model_type": part.model_type} | sized(part, SIZES if is_text else VISION, more)
    return kind(**sized(whole, {} if parts else SIZES, parts | OVERRIDES.get(model_type, {})))


def write(folder: Path, model: Any) -> None:
    """Norms and biases are born as ones and zeros, which hide mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.randn_like(parameter)
                parameter.add_(0.3 * noise if "norm" in name else noise)
            elif not parameter.any():
                parameter.normal_(std=0.5)
    model.save_pretrained(folder, save_original_format=True)


@torch.no_grad()
def logprobs(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def difference(driver: Driver, model: Any) -> float:
    """The largest, over a prompt in chunks and what follows, in company."""
    everything = SamplingParams(temperature=0, logprobs=VOCAB_SIZE, prompt_logprobs=VOCAB_SIZE)
    prompts = [tokens(41), tokens(18, seed=3)]
    seqs = [driver.add(prompt, everything) for prompt in prompts]
    driver.run(seqs, 24, chunk=7)
    worst = 0.0
    for seq, prompt in zip(seqs, prompts, strict=True):
        expected = logprobs(model, seq.token_ids)
        ours = [seq.prompt_logprobs[i] for i in range(1, len(prompt))] + seq.logprobs
        table = torch.tensor([[row[token] for token in range(VOCAB_SIZE)] for row in ours])
        worst = max(worst, float((table - expected[: len(table)]).abs().max()))
    return worst


def outcome(model_type: str, mapping: Any, folder: Path) -> str:
    torch.manual_seed(7)
    try:
        config = config_of(model_type)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in mapping[type(config)](config).parameters())
        if count > MAX_PARAMETERS:
            return f"NOT MADE  {count / 1e6:.0f} million parameters"
        model = mapping[type(config)](config).float().eval()
        write(folder, model)
        model = (
            mapping[type(config)]
            .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
            .eval()
        )
        logprobs(model, tokens(7))
    except Exception as error:
        return f"NOT MADE  {type(error).__name__}: {' '.join(str(error).split())}"
    try:
        runner = TorchRunner(worker_config(folder, folder, block_size=4, num_kv_blocks=800), quiet)
    except TernError as error:
        return f"refused   {error.message}"
    except Exception as error:
        return f"CRASH     {type(error).__name__}: {error}"
    kind = type(runner.served.model).__name__
    try:
        off = difference(Driver(runner), model)
    except Exception as error:
        return f"CRASH     in a step, {type(error).__name__}: {error}"
    return f"{'served' if off <= TOLERANCE else 'WRONG'}    {off:.1e} {kind}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("types", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    quieten: Any = logging.set_verbosity_error
    quieten()
    mapping: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if options.pictures else MODEL_FOR_CAUSAL_LM_MAPPING
    for model_type in options.types or mapping._model_mapping:
        folder = Path(tempfile.mkdtemp(prefix="sweep-"))
        begun = time.perf_counter()
        said = outcome(model_type, mapping, folder)
        print(f"{model_type:26} {time.perf_counter() - begun:4.1f}s {said}", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
