"""Trains the bundled model (and its draft) from nothing: tokenizer, weights, scores. Plain torch, one file.

    python scripts/train_bundled_model.py              the tokenizer, then models/tern-mini
    python scripts/train_bundled_model.py --draft      models/tern-mini-draft, with the tokenizer of tern-mini

Knows nothing about serving. The data of block b depends on the seed and b alone, so a run can be resumed
anywhere. The learning rate follows the elapsed share of --minutes (it ends on time on a busy machine) or of
--steps (the same length on any machine; the model card says how many the published weights took). On a CPU
two processes of one thread each share a step: one process of two threads waits for itself at each matrix.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from scripts.bundled_tasks import Sample, held_out_samples, training_samples  # noqa: E402

MODELS = ROOT / "models"
BOS, PAD, END = "<|bos|>", "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL = [PAD, BOS, END, *(f"<|{role}|>" for role in ROLES)]
# Merges only inside a word behind a space, a capitalised word (a name is the same tokens everywhere) and a
# JSON key. All else is single characters: digits, and quoted lower-case words, for the letter tasks.
PIECES = r""" [a-z]+|[A-Z][a-z]+|"[a-z_]+":|[\s\S]"""
CHAT_TEMPLATE = (MODELS / "tern-mini" / "chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")
VOCAB_SIZE = 2048
ROW, ROWS = 256, 16  # one step: 16 rows of 256 tokens, several chats to a row
LONG_ROW, LONG_ROWS = 2048, 2  # the last step of a block: whole conversations, to see long positions
STEPS_PER_BLOCK = 32
CHAINED = 0.1  # share of chats that are several tasks in a row, one conversation
IGNORE = -100


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    head_dim: int = 32
    vocab_size: int = VOCAB_SIZE
    max_positions: int = LONG_ROW
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def hf_config(self, ids: dict[str, int]) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
            "hidden_size": self.hidden_size, "num_hidden_layers": self.num_layers,
            "intermediate_size": self.intermediate_size, "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab_size, "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta, "rope_scaling": None, "rms_norm_eps": self.norm_eps,
            "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "tie_word_embeddings": True, "initializer_range": 0.02, "use_cache": True,
            "bos_token_id": ids[BOS], "eos_token_id": ids[END], "pad_token_id": ids[PAD],
        }  # fmt: skip


TARGET = Shape(hidden_size=192, num_layers=6, num_heads=6, num_kv_heads=2, intermediate_size=512)
DRAFT = Shape(hidden_size=128, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=256)


class Attention(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.q_proj = nn.Linear(s.hidden_size, s.num_heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, s.num_kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, s.num_kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.num_heads * s.head_dim, s.hidden_size, bias=False)
        self.s = s

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, -1, self.s.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, -1, self.s.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, -1, self.s.head_dim).transpose(1, 2)
        groups = self.s.num_heads // self.s.num_kv_heads
        q, k = rotate(q, cos, sin), rotate(k, cos, sin).repeat_interleave(groups, 1)
        v = v.repeat_interleave(groups, 1)
        if mask is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # on a CPU twice as fast as the fused kernel's backward pass
            scores = (q * self.s.head_dim**-0.5) @ k.transpose(-1, -2)
            out = scores.add_(mask.to(scores.dtype)).softmax(-1, dtype=scores.dtype) @ v
        y: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))
        return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class MLP(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.hidden_size, s.norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden_size, s.norm_eps)
        self.mlp = MLP(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class Llama(nn.Module):
    """Tied embeddings; parameter names are those of the published format without the leading `model.`."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.num_layers))
        self.norm = nn.RMSNorm(s.hidden_size, s.norm_eps)
        frequency = s.rope_theta ** (-torch.arange(0, s.head_dim, 2).float() / s.head_dim)
        angle = torch.arange(s.max_positions).float()[:, None] * frequency
        self.register_buffer("angle", torch.cat((angle, angle), -1), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = (
                    1 / math.sqrt(2 * s.num_layers)
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else 1.0
                )
                nn.init.normal_(p, std=scale * (0.02 if "embed" in name else s.hidden_size**-0.5))

    def forward(self, batch: "Batch", at: Tensor) -> Tensor:
        """Logits [positions, vocabulary] where `at` [rows, length] is true."""
        angle = self.get_buffer("angle")[batch.positions][:, None]
        cos, sin = angle.cos(), angle.sin()
        x = self.embed_tokens(batch.ids)
        mask = None
        if batch.chats is not None:
            same = batch.chats[:, :, None] == batch.chats[:, None, :]
            mask = torch.zeros(same.shape, device=same.device).masked_fill(~same.tril(), -1e4)[:, None]
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return F.linear(self.norm(x)[at], self.embed_tokens.weight)


# ---- data ----


def token_id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number


@dataclass(frozen=True)
class Chat:
    ids: list[int]
    targets: list[int]  # the next token where it belongs to an answer, else IGNORE


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [rows, length]
    targets: Tensor  # [rows, length]
    positions: Tensor  # [rows, length], from 0 in each chat
    chats: Tensor | None  # [rows, length]: which chat of its row; None where a row is one chat

    def part(self, rank: int, world: int, device: torch.device) -> "Batch":
        def cut(x: Tensor) -> Tensor:
            return x[rank::world].to(device)

        chats = None if self.chats is None else cut(self.chats)
        return Batch(cut(self.ids), cut(self.targets), cut(self.positions), chats)


def encode(tokenizer: Tokenizer, messages: list[dict[str, str]], answer: str) -> Chat:
    """The ids that the chat template renders; every assistant turn and its end is a target."""
    ids = [token_id(tokenizer, BOS)]
    wanted = [False]
    for message in [*messages, {"role": "assistant", "content": answer}]:
        text = tokenizer.encode(message["content"] + END, add_special_tokens=False).ids
        ids += [token_id(tokenizer, f"<|{message['role']}|>"), *text]
        wanted += [False, *[message["role"] == "assistant"] * len(text)]
    targets = [token if want else IGNORE for token, want in zip(ids[1:], wanted[1:], strict=True)]
    return Chat(ids[:-1], targets)


def chain(samples: Iterator[Sample], count: int) -> tuple[list[dict[str, str]], str]:
    """Several tasks as the turns of one conversation, under the first one's system prompt."""
    messages: list[dict[str, str]] = []
    answer = ""
    for i in range(count):
        sample = next(samples)
        while i and sample.messages[0]["content"].startswith("Tools: "):
            sample = next(samples)
        if i:
            messages.append({"role": "assistant", "content": answer})
        messages += [m for m in sample.messages if not i or m["role"] != "system"]
        answer = sample.answer
    return messages, answer


def pack(rows: list[list[Chat]], length: int, pad: int) -> Batch:
    ids = torch.full((len(rows), length), pad)
    targets = torch.full((len(rows), length), IGNORE)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    chats = torch.full((len(rows), length), -1)
    for r, row in enumerate(rows):
        start = 0
        for c, chat in enumerate(row):
            end = start + len(chat.ids)
            ids[r, start:end] = torch.tensor(chat.ids)
            targets[r, start:end] = torch.tensor(chat.targets)
            positions[r, start:end] = torch.arange(end - start)
            chats[r, start:end] = c
            start = end
    return Batch(ids, targets, positions, None if all(len(row) == 1 for row in rows) else chats)


def block(tokenizer: Tokenizer, seed: int, number: int) -> list[Batch]:
    """The batches of one block: online best fit into rows, then one batch of long conversations."""
    rng = Random(f"{seed} {number}")
    samples = training_samples(rng)
    pad = token_id(tokenizer, PAD)
    rows: list[list[Chat]] = [[] for _ in range((STEPS_PER_BLOCK - 1) * ROWS)]
    free = [ROW] * len(rows)
    misses = 0
    while misses < 40:
        turns = chain(samples, rng.randint(2, 4) if rng.random() < CHAINED else 1)
        chat = encode(tokenizer, *turns)
        fits = [r for r in range(len(rows)) if free[r] >= len(chat.ids)]
        if not fits:
            misses += 1
            continue
        best = min(fits, key=free.__getitem__)
        rows[best].append(chat)
        free[best] -= len(chat.ids)
    rng.shuffle(rows)
    batches = [pack(rows[i : i + ROWS], ROW, pad) for i in range(0, len(rows), ROWS)]
    long = [encode(tokenizer, *chain(samples, 60)) for _ in range(LONG_ROWS)]
    cut = [[Chat(chat.ids[:LONG_ROW], chat.targets[:LONG_ROW])] for chat in long]
    return [*batches, pack(cut, LONG_ROW, pad)]


def train_tokenizer(seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    samples = training_samples(Random(f"tokenizer {seed}"))
    texts = (
        "\n".join([*(m["content"] for m in s.messages), s.answer])
        for s, _ in zip(samples, range(60_000), strict=False)
    )
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE - 2, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "</tool_call>")])
    return tokenizer


# ---- training ----


def save(model: Llama, shape: Shape, tokenizer: Tokenizer, out: Path) -> None:
    """Every file is replaced by a rename, so that a reader never sees half of one."""
    ids = {token: token_id(tokenizer, token) for token in SPECIAL}
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        f"model.{name}": p.detach().to("cpu", copy=True).contiguous() for name, p in model.named_parameters()
    }
    save_file(weights, out / "model.safetensors.tmp", metadata={"format": "pt"})
    (out / "model.safetensors.tmp").chmod(0o644)
    os.replace(out / "model.safetensors.tmp", out / "model.safetensors")
    write_json(out / "config.json", shape.hf_config(ids))
    write_json(out / "generation_config.json", {
        "bos_token_id": ids[BOS], "eos_token_id": ids[END], "pad_token_id": ids[PAD], "do_sample": False,
    })  # fmt: skip
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.max_positions,
        "bos_token": BOS, "eos_token": END, "pad_token": PAD, "clean_up_tokenization_spaces": False,
        "add_bos_token": False, "chat_template": CHAT_TEMPLATE,
    })  # fmt: skip
    (out / "tokenizer.json.tmp").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    os.replace(out / "tokenizer.json.tmp", out / "tokenizer.json")


def write_json(path: Path, value: object) -> None:
    path.with_suffix(".tmp").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)


@torch.no_grad()
def exact_match(
    model: Llama, tokenizer: Tokenizer, samples: list[Sample], device: torch.device
) -> dict[str, float]:
    """Teacher-forced: each token of the answer and the end token is the argmax, as greedy decoding emits."""
    hits: dict[str, list[bool]] = {}
    pad = token_id(tokenizer, PAD)
    chats = [
        (s.task, encode(tokenizer, s.messages, s.answer), len(tokenizer.encode(s.answer).ids) + 1)
        for s in samples
    ]
    chats.sort(key=lambda entry: len(entry[1].ids))
    for start in range(0, len(chats), 32):
        part = chats[start : start + 32]
        width = max(len(chat.ids) for _, chat, _ in part)
        batch = pack([[chat] for _, chat, _ in part], width, pad).part(0, 1, device)
        everywhere = torch.ones_like(batch.ids, dtype=torch.bool)
        best = model(batch, everywhere).argmax(-1).view(batch.ids.shape)
        for row, (task, chat, length) in enumerate(part):
            span = slice(len(chat.ids) - length, len(chat.ids))
            hits.setdefault(task, []).append(bool((best[row, span] == batch.targets[row, span]).all()))
    return {task: sum(h) / len(h) for task, h in sorted(hits.items())}


def learning_rate(peak: float, done: float) -> float:
    """Flat after a short warm-up, linear to zero over the last 35 %."""
    return peak * min(1.0, done / 0.02 + 0.01, (1.0 - done) / 0.35)


@dataclass
class Run:
    args: argparse.Namespace
    shape: Shape
    tokenizer: Tokenizer
    device: torch.device
    step: int = 0
    seconds: float = 0.0

    def done(self) -> float:
        if self.args.steps:
            return min(1.0, self.step / float(self.args.steps))
        return min(1.0, self.seconds / (60 * float(self.args.minutes)))


def token_weights(targets: Tensor, end_weight: float) -> Tensor:
    """Zero outside the answers, `end_weight` on the last two tokens of each, else one.

    Where a list of sixty tokens stops is one decision in sixty; unweighted it is the last thing to be learnt.
    """
    answer = targets != IGNORE
    last = answer & ~F.pad(answer[:, 1:], (0, 1))
    last_two = last | (answer & F.pad(last[:, 1:], (0, 1)))
    return answer.float() + (end_weight - 1) * last_two.float()


def gradients(model: Llama, batch: Batch, end_weight: float, total: float) -> float:
    """Adds this process's share of the mean loss (weights sum to `total` over all); returns that share."""
    at = batch.targets != IGNORE
    with torch.autocast(batch.ids.device.type, torch.bfloat16):
        logits = model(batch, at)
    losses = F.cross_entropy(logits.float(), batch.targets[at], reduction="none")
    loss = (losses * token_weights(batch.targets, end_weight)[at]).sum() / total
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def reduce(model: Llama, loss: float, done: float) -> tuple[float, float]:
    """Sums gradients and loss over the processes; rank 0's clock decides for all."""
    if not dist.is_initialized():
        return loss, done
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    clock = done if dist.get_rank() == 0 else 0.0
    flat = torch.cat([*(g.reshape(-1) for g in grads), torch.tensor([loss, clock])])
    dist.all_reduce(flat)
    for g, part in zip(grads, torch.split(flat[:-2], [g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))
    return float(flat[-2]), float(flat[-1])


def start(run: Run) -> tuple[Llama, torch.optim.Optimizer]:
    """Model and optimizer from the seed, or from where --state left off."""
    torch.manual_seed(run.args.seed)
    model = Llama(run.shape).to(run.device)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=run.args.lr, betas=(0.9, 0.97), eps=1e-9, fused=True)
    if run.args.state and run.args.state.exists():
        state = torch.load(run.args.state, map_location=run.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        run.step, run.seconds = state["step"], state["seconds"]
    return model, optimizer


def checkpoint(run: Run, model: Llama, optimizer: torch.optim.Optimizer) -> None:
    save(model, run.shape, run.tokenizer, run.args.out)
    if run.args.state:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"step": run.step, "seconds": run.seconds}, run.args.state)
    scores = exact_match(model, run.tokenizer, held_out_samples(20), run.device)
    print(f"saved; held-out mean {sum(scores.values()) / len(scores):.3f}", end=" ")
    print(" ".join(f"{task} {score:.2f}" for task, score in scores.items()), flush=True)


def train(run: Run) -> Llama:
    args, device = run.args, run.device
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model, optimizer = start(run)
    started, saved, printed, tokens = time.monotonic() - run.seconds, time.monotonic(), time.monotonic(), 0
    batches: list[Batch] = []
    done = run.done()
    while done < 1.0:
        place = run.step % STEPS_PER_BLOCK
        if not place or not batches:
            batches = block(run.tokenizer, args.seed, run.step // STEPS_PER_BLOCK)
        batch = batches[place]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, done)
        end_weight = 1.0 if done < 1 / 3 else 6.0
        total = float(token_weights(batch.targets, end_weight).sum())
        loss = gradients(model, batch.part(rank, world, device), end_weight, total)
        run.step += 1
        run.seconds = time.monotonic() - started
        loss, done = reduce(model, loss, run.done())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += batch.ids.numel()
        now = time.monotonic()
        if rank == 0 and run.step % 50 == 0:
            print(f"step {run.step} {run.seconds / 60:.1f} min done {done:.3f} loss {loss:.3f} "
                  f"{tokens / (now - printed):.0f} tok/s", flush=True)  # fmt: skip
            printed, tokens = now, 0
        if rank == 0 and (run.step == 100 or now - saved > 60 * args.save_minutes):
            checkpoint(run, model, optimizer)
            saved = time.monotonic()
    return model


def load(folder: Path, shape: Shape) -> Llama:
    model = Llama(shape)
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in load_file(folder / "model.safetensors").items()}
    )
    return model


@torch.no_grad()
def agreement(draft: Llama, target: Llama, tokenizer: Tokenizer, samples: list[Sample]) -> float:
    """Share of the held-out answers' tokens where the draft's argmax is the target's."""
    same = total = 0
    for sample in samples:
        chat = encode(tokenizer, sample.messages, sample.answer)
        batch = pack([[chat]], len(chat.ids), 0)
        at = batch.targets != IGNORE
        agree = draft(batch, at).argmax(-1) == target(batch, at).argmax(-1)
        same, total = same + int(agree.sum()), total + agree.numel()
    return same / total


@torch.no_grad()
def same_as_transformers(model: Llama, tokenizer: Tokenizer, out: Path, samples: list[Sample]) -> str:
    """Loads what was saved with the reference library: template, ids and logits must agree."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        return "not checked, transformers is not installed"
    reference, reader = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    worst = 0.0
    for sample in samples:
        chat = encode(tokenizer, sample.messages, sample.answer)
        turns = [*sample.messages, {"role": "assistant", "content": sample.answer}]
        rendered = reader.apply_chat_template(turns, tokenize=False)
        ids = reader(rendered, add_special_tokens=False)["input_ids"]
        assert ids[:-1] == chat.ids, (ids, chat.ids)
        batch = pack([[chat]], len(chat.ids), 0)
        ours = model(batch, torch.ones_like(batch.ids, dtype=torch.bool))
        worst = max(worst, float((reference(batch.ids).logits[0] - ours).abs().max()))
    assert worst < 1e-3, worst
    return f"largest logit difference {worst:.1e}"


def work(rank: int, world: int, args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() and world == 1 else "cpu")
    if world > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{args.rendezvous}", rank=rank, world_size=world)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    shape = DRAFT if args.draft else TARGET
    run = Run(args, shape, tokenizer, device)
    model = train(run)
    if rank:
        return
    save(model, shape, tokenizer, args.out)
    model = model.cpu()
    held_out = held_out_samples(100)
    scores = exact_match(model, tokenizer, held_out, torch.device("cpu"))
    report: dict[str, Any] = {
        "mean_exact_match": round(sum(scores.values()) / len(scores), 4),
        "how": "teacher-forced: every answer token and the end token is the argmax; up to 100 prompts a task",
        "seed": args.seed, "steps": run.step, "minutes": round(run.seconds / 60, 1),
        "parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__,
        "tokens": run.step * ROW * ROWS, "tasks": {task: round(score, 4) for task, score in scores.items()},
    }  # fmt: skip
    if args.draft:
        target = load(MODELS / "tern-mini", TARGET)
        report["argmax_agreement_with_target"] = round(agreement(model, target, tokenizer, held_out[::4]), 4)
    write_json(args.out / "scores.json", report)
    print(json.dumps(report, indent=2))
    print("transformers:", same_as_transformers(model, tokenizer, args.out, held_out[::60]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draft", action="store_true", help="train the draft instead of the target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=None, help="wall time; default 40, the draft 5")
    parser.add_argument(
        "--steps", type=int, default=None, help="instead of --minutes: exactly this many steps"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--workers",
        type=int,
        default=1 if torch.cuda.is_available() else 2,
        help="CPU processes that share each step, one thread each",
    )
    parser.add_argument("--save-minutes", type=float, default=10.0)
    parser.add_argument(
        "--state", type=Path, default=None, help="resume from this file and keep it up to date"
    )
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    args.out = args.out or MODELS / ("tern-mini-draft" if args.draft else "tern-mini")
    args.minutes = args.minutes or (5.0 if args.draft else 40.0)
    # The workers inherit these: with glibc's defaults a fifth of a step is page faults in fresh mappings.
    os.environ |= {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "8000000000",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory() as scratch:
        args.rendezvous = Path(scratch) / "rendezvous"
        args.tokenizer = MODELS / "tern-mini" / "tokenizer.json"
        if not args.draft:
            tokenizer = train_tokenizer(args.seed)
            assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
            args.tokenizer = Path(scratch) / "tokenizer.json"
            tokenizer.save(str(args.tokenizer))
        if args.workers == 1:
            work(0, 1, args)
        else:
            spawn(work, (args.workers, args), nprocs=args.workers)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
