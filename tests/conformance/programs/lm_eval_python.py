"""lm-eval, on a task of its own: the same accuracy alone and with 32 requests at once."""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # the task is here

from calls import MODEL, URL, equal, run
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask

WORDS = (
    "tern", "pole", "bird", "wing", "nest", "fish", "wave", "rock", "wind", "snow", "star", "moon",
    "ship", "sail", "port", "gull", "duck", "swan", "lake", "reed", "sand", "salt", "foam", "tide",
)  # fmt: skip
DOCUMENTS = [{"question": f'Spell the word "{word}".', "answer": "-".join(word)} for word in WORDS]
LEAST = 0.9
"""Of which the model knows nearly all."""


def accuracy(kind: str, path: str, at_once: int) -> float:
    task = ConfigurableTask(
        config={
            "task": "spelling",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(DOCUMENTS)},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n\n"], "temperature": 0, "max_gen_toks": 64},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    server = {"base_url": f"{URL}{path}", "model": MODEL, "num_concurrent": at_once, "max_retries": 1}
    found = simple_evaluate(
        model=kind,
        model_args={**server, "tokenized_requests": False},
        tasks=[task],
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=False,
    )
    return found["results"]["spelling"]["exact_match,none"]


def chat() -> None:
    """`local-chat-completions`, exact match, alone and with 32 at once"""
    alone = accuracy("local-chat-completions", "/v1/chat/completions", 1)
    assert alone >= LEAST, alone
    equal(accuracy("local-chat-completions", "/v1/chat/completions", 32), alone)


run(chat)
