"""llama.cpp through its own C interface: one batch of all sequences per step, greedy.

The checkpoint (Qwen3) is written as GGUF without a vocabulary, for only ids go in and come out, and
quantized by llama.cpp's own quantizer: q8_0 or q4_0. Everything is kept beside the checkpoint.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from .answering import Prompts, answer, check_lengths, claim_stdout

FILE_TYPES = {"int8": 7, "int4": 2}
"""LLAMA_FTYPE_MOSTLY_Q8_0 and _Q4_0"""
CONTEXT = 4096
"""Tokens of all sequences together."""
STEP_TOKENS = 2048


def main(folder: str, threads: str, kind: str) -> None:
    descriptor = claim_stdout()
    llama: Any = import_module("llama_cpp")
    numpy: Any = import_module("numpy")
    path = convert(Path(folder), kind)
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    options = llama.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = CONTEXT, STEP_TOKENS, 512, 16
    options.n_threads = options.n_threads_batch = int(threads)
    options.kv_unified = True
    context = llama.llama_init_from_model(model, options)
    batch = llama.llama_batch_init(STEP_TOKENS, 0, 1)

    def step(tokens: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, whether its logits are wanted)"""
        batch.n_tokens = len(tokens)
        for place, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = wanted
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def likeliest(place: int) -> int:
        logits = llama.llama_get_logits_ith(context, place)
        return int(numpy.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    def generate(prompts: Prompts, num_tokens: int) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        answers: list[list[int]] = []
        for sequence, ids in enumerate(prompts):  # each prompt is a step: a prompt may fill one alone
            step([(token, at, sequence, at + 1 == len(ids)) for at, token in enumerate(ids)])
            answers.append([likeliest(len(ids) - 1)])
        for index in range(num_tokens - 1):
            step([(one[-1], len(prompts[s]) + index, s, True) for s, one in enumerate(answers)])
            for s, one in enumerate(answers):
                one.append(likeliest(s))
        check_lengths([len(one) for one in answers], prompts, num_tokens)

    answer({"generate": generate}, descriptor)


def convert(folder: Path, kind: str) -> Path:
    """The GGUF file of this kind; made if it is not there."""
    plain = folder.with_name(f"{folder.name}-bf16.gguf")
    if not plain.exists():
        _write(folder, plain)
    if kind == "bf16":
        return plain
    quantized = folder.with_name(f"{folder.name}-{kind}.gguf")
    if not quantized.exists():
        llama: Any = import_module("llama_cpp")
        unfinished = quantized.with_suffix(".unfinished")
        options = llama.llama_model_quantize_default_params()
        options.ftype = FILE_TYPES[kind]
        if llama.llama_model_quantize(str(plain).encode(), str(unfinished).encode(), options) != 0:
            raise RuntimeError(f"llama.cpp could not quantize {plain}")
        unfinished.rename(quantized)
    return quantized


def _write(folder: Path, path: Path) -> None:
    gguf: Any = import_module("gguf")
    torch: Any = import_module("torch")
    load = import_module("safetensors.torch").load_file
    config = import_module("json").loads((folder / "config.json").read_text())
    architecture = gguf.MODEL_ARCH.QWEN3
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(str(unfinished), gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, tensor in load(str(folder / "model.safetensors")).items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor.dim() == 1:  # llama.cpp wants norms in float32
            writer.add_tensor(own, tensor.float().numpy())
        else:
            raw = tensor.view(torch.uint8).numpy()
            writer.add_tensor(own, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
