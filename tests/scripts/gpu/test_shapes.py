"""Checkpoint folders without weights."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from scripts.gpu.shapes import SHAPES, TINY, write


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
