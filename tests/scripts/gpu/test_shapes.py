"""Checkpoint folders without weights."""

import json
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer

from scripts.gpu.shapes import SHAPES, SPARSE, TINY, TINY_SPARSE, write
from worker.models.qwen3_moe import Qwen3MoeConfig, build_qwen3_moe
from worker.parallel import Group
from worker.weights import Wants


def test_a_folder_has_a_text_for_every_id(tmp_path: Path) -> None:
    folder = write(TINY, tmp_path)
    assert write(TINY, tmp_path) == folder, "made once"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TINY.vocab_size
    texts = [tokenizer.decode([index]) for index in range(TINY.vocab_size)]
    assert all(texts)
    assert tokenizer.encode("tern").tokens == list("tern")


def test_configs_are_those_of_the_published_models() -> None:
    for shape in SHAPES.values():
        config = shape.config()
        assert json.dumps(config)
        assert config["num_hidden_layers"] == shape.num_layers
        assert config["tie_word_embeddings"] == (shape.name != "Llama-3.1-8B")


def test_a_mixture_has_the_weights_that_are_counted() -> None:
    """And of its experts a token is multiplied by its own."""
    for shape in (TINY_SPARSE, SPARSE):
        wants = Wants(torch.int8)
        build_qwen3_moe(msgspec.convert(shape.config(), Qwen3MoeConfig), wants, Group())
        linears = [request for request in wants.requests if len(request.parts[0].shape) == 2]
        embedding_and_head = 2 * shape.head_weights
        counted = sum(request.num_bytes for request in linears)
        assert counted == shape.stored_layer_weights + embedding_and_head
    expert = 3 * SPARSE.hidden_size * SPARSE.intermediate_size
    spared = SPARSE.stored_layer_weights - SPARSE.layer_weights
    assert spared == SPARSE.num_layers * (SPARSE.num_experts - SPARSE.top_k) * expert
