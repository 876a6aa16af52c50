"""lm-eval, on tasks of its own: the same accuracy alone, with 32 requests at once, and as transformers on the
same weights. A line of each task's results is printed for docs/clients.md."""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # the tasks are here
os.environ["OMP_NUM_THREADS"] = "1"  # transformers, beside the server

from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask

from .calls import MODEL, URL, equal, run

CHECKPOINT = str(Path(__file__).parents[3] / "models" / "tern-mini")
WORDS = (
    "tern", "pole", "bird", "wing", "nest", "fish", "wave", "rock", "wind", "snow", "star", "moon",
    "ship", "sail", "port", "gull", "duck", "swan", "lake", "reed", "sand", "salt", "foam", "tide",
)  # fmt: skip
LOGPROB_TOLERANCE = 2e-3
"""Of a choice: float32 sums in another order."""


def spelled(word: str) -> str:
    return "-".join(word)


def misspelled(word: str) -> list[str]:
    """Two letters swapped, one doubled, one left out."""
    return [word[0] + word[2] + word[1] + word[3:], word[:2] + word[1:], word[:1] + word[2:]]


SPELLING = {
    "task": "spelling",
    "documents": [{"question": f'Spell the word "{word}".', "answer": spelled(word)} for word in WORDS],
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n"], "temperature": 0, "max_gen_toks": 64},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CHOOSING = {
    "task": "choosing",
    "documents": [
        {
            "question": f'Spell the word "{word}".',
            "choices": [spelled(one) for one in (word, *misspelled(word), WORDS[i - 1])],
        }
        for i, word in enumerate(WORDS)
    ],
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def ask(task: dict[str, Any], kind: str, **arguments: Any) -> tuple[float, list[Any]]:
    """The task's accuracy, and what was answered to each of its documents, in order."""
    config = {key: value for key, value in task.items() if key != "documents"}
    documents = Dataset.from_list(task["documents"])
    config |= {"custom_dataset": lambda **_: {"test": documents}, "test_split": "test"}
    found = simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=[ConfigurableTask(config=config)],
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=True,
    )
    [metric] = task["metric_list"]
    samples = sorted(found["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    return found["results"][task["task"]][f"{metric['metric']},none"], [s["filtered_resps"] for s in samples]


def server(path: str, at_once: int) -> dict[str, Any]:
    return {"base_url": f"{URL}{path}", "model": MODEL, "num_concurrent": at_once, "max_retries": 1}


def report(name: str, kind: str, *accuracies: float | None) -> None:
    cells = ["–" if accuracy is None else f"{accuracy:.3f}" for accuracy in accuracies]
    print(f"row {' | '.join([name, f'`{kind}`', *cells])}", flush=True)


def chat() -> None:
    """`local-chat-completions`, exact match, alone and with 32 at once"""
    kind = "local-chat-completions"
    options = {"tokenized_requests": False}
    alone, many = (ask(SPELLING, kind, **server("/v1/chat/completions", n), **options) for n in (1, 32))
    equal(many, alone)
    report("spelling, generated", kind, alone[0], many[0], None)


def completions() -> None:
    """`local-completions`, exact match, alone and with 32 at once, as with `hf` (transformers)"""
    kind = "local-completions"
    alone, many = (ask(SPELLING, kind, tokenizer=CHECKPOINT, **server("/v1/completions", n)) for n in (1, 32))
    reference = ask(SPELLING, "hf", pretrained=CHECKPOINT, dtype="float32", device="cpu")
    equal(many, alone)
    equal(alone, reference)
    report("spelling, generated", kind, alone[0], many[0], reference[0])


def choices() -> None:
    """`local-completions`, multiple choice (`echo`, `logprobs`), alone and with 32 at once, as with `hf`"""
    kind = "local-completions"
    alone, many = (ask(CHOOSING, kind, tokenizer=CHECKPOINT, **server("/v1/completions", n)) for n in (1, 32))
    reference = ask(CHOOSING, "hf", pretrained=CHECKPOINT, dtype="float32", device="cpu")
    equal(many, alone)
    equal(alone[0], reference[0])
    for ours, theirs in zip(alone[1], reference[1], strict=True):
        for (logprob, greedy), (wanted, wanted_greedy) in zip(ours, theirs, strict=True):
            assert abs(float(logprob) - float(wanted)) < LOGPROB_TOLERANCE, (logprob, wanted)
            equal(greedy, wanted_greedy)
    report("spelling, multiple choice", kind, alone[0], many[0], reference[0])


run(chat, completions, choices)
