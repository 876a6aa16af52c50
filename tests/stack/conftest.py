"""A whole server of real processes. `serve(*flags)` starts one, and its end is checked after the test."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from scripts.model_path import BUNDLED
from tests.stack.hold import Hold

if TYPE_CHECKING:
    from tests.conftest import Program

    Launch = Callable[..., Program]

TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = Path(__file__).with_name("corpus.txt")
"""Any text would do that stays as it is: answers and their lengths follow from what tokens there are."""
VOCAB_SIZE = 512
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 16384, "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Cut failures off where they enter Playwright: pytest reads the file there, which takes it minutes."""
    step = call.excinfo.tb if call.excinfo is not None else None
    while step is not None:
        if step.tb_next is not None and "/playwright/" in step.tb_next.tb_frame.f_code.co_filename:
            step.tb_next = None
        step = step.tb_next
    return (yield)


class Stack:
    """`tern serve`, as its operator and as its clients see it."""

    model = "tiny"

    def __init__(self, program: "Program", run_dir: Path, hold: Hold | None = None) -> None:
        """`hold`: of its workers. None: they go on whatever it says."""
        self.program = program
        self.run_dir = run_dir
        self.hold = hold or Hold(run_dir / "nobody-reads-it")
        self.endpoint_file = str(run_dir / "endpoint")
        self.base_url = program.wait_for(r"API +(http://\S+)/v1")[1]
        program.wait_for("Ctrl-C stops everything")
        self.wait_ready()

    @property
    def pids(self) -> dict[str, list[int]]:
        """By kind: supervisor, engine_core, worker, frontend."""
        pids: dict[str, list[int]] = json.loads((self.run_dir / "pids.json").read_text())
        return pids

    def kill(self, kind: str, index: int = 0) -> int:
        """SIGKILL; the pid it had."""
        pid = self.pids[kind][index]
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_ready(self) -> None:
        """Until /health/ready says so. A request waits in the backlog while there is no frontend."""
        with httpx2.Client(base_url=self.base_url, timeout=60) as client:
            self.program.wait_until(lambda: client.get("/health/ready").status_code == 200, "ready")

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key="none", max_retries=0, timeout=60)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.base_url}/v1", api_key="none", max_retries=0, timeout=60)

    def ends(self, number: signal.Signals) -> int:
        """Exit code after a signal."""
        self.program.signal(number)
        return self.gone()

    def gone(self) -> int:
        """Exit code, once it is over. Nothing may be left, and nothing may have failed on the way."""
        exit_code = self.program.wait()
        assert self.program.survivors() == []
        assert not self.run_dir.exists()
        assert "Traceback" not in self.program.output, self.program.output
        return exit_code


Serve = Callable[..., Stack]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights with a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("checkpoint") / Stack.model
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([CORPUS.read_text()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "chat_template": TEMPLATE}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(_random_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def sliding_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights and tokenizer, as a Mistral whose layers have a window of 40 tokens."""
    folder = tmp_path_factory.mktemp("sliding") / Stack.model
    shutil.copytree(tiny_checkpoint, folder)
    changes = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 40}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def _random_weights() -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(7)
    hidden, inner, heads, kv = 64, 128, 64, 32
    shapes = {
        "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    weights = {"model.embed_tokens.weight": generator.standard_normal((VOCAB_SIZE, hidden), dtype=np.float32)}
    weights["model.norm.weight"] = np.ones(hidden, np.float32)
    for layer in range(2):
        for name, shape in shapes.items():
            random = generator.standard_normal(shape, dtype=np.float32)
            weights[f"model.layers.{layer}.{name}.weight"] = random / np.float32(8)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(hidden, np.float32)
    return weights


@pytest.fixture
def serve(launch: "Launch", tmp_path: Path, tiny_checkpoint: Path) -> Iterator[Serve]:
    """serve(*flags, held=False): a server of the tiny checkpoint, by default over the stub worker. Its end is
    checked. `held`: its workers go no further than its `hold` says."""
    stacks: list[Stack] = []

    def start(
        *flags: str,
        worker: str = "stub",
        checkpoint: Path = tiny_checkpoint,
        held: bool = False,
        **environ: str,
    ) -> Stack:
        run_dir = tmp_path / f"run{len(stacks)}"
        hold = Hold(tmp_path / f"hold{len(stacks)}") if held else None
        if hold is not None:
            environ["TERN_FAULTS"] = ";".join(filter(None, [environ.get("TERN_FAULTS"), hold.environ]))
        fixed = ["--port", "0", "--run-dir", str(run_dir), "--worker", worker, "--threads", "1"]
        fixed += ["--journal", f"{run_dir}.journal", "--crash-dir", str(tmp_path / "crashes")]
        program = launch("scripts.cli", "serve", str(checkpoint), *fixed, *flags, **environ)
        stacks.append(Stack(program, run_dir, hold))
        return stacks[-1]

    yield start
    for stack in stacks:
        stack.hold.release()
        if stack.run_dir.exists() and stack.program.survivors():
            assert stack.ends(signal.SIGTERM) == 0, stack.program.output


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, launcher: "Callable[[Path], Launch]"
) -> Iterator[Stack]:
    """One server for all tests of a file that leave it as they found it."""
    folder = tmp_path_factory.mktemp("server")
    run_dir = folder / "run"
    program = launcher(folder)(
        "scripts.cli",
        "serve",
        str(tiny_checkpoint),
        "--port",
        "0",
        "--run-dir",
        str(run_dir),
        "--worker",
        "stub",
        TERN_FAULTS=(hold := Hold(folder / "hold")).environ,
    )
    stack = Stack(program, run_dir, hold)
    yield stack
    assert stack.ends(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def bundled(
    tmp_path_factory: pytest.TempPathFactory, launcher: "Callable[[Path], Launch]"
) -> Iterator[Stack]:
    """One server of the bundled model for all tests of a file."""
    folder = tmp_path_factory.mktemp("bundled")
    flags = ["--port", "0", "--run-dir", str(folder / "run"), "--served-model-name", "tiny", "--threads", "1"]
    stack = Stack(launcher(folder)("scripts.cli", "serve", str(BUNDLED), *flags), folder / "run")
    yield stack
    assert stack.ends(signal.SIGTERM) == 0
