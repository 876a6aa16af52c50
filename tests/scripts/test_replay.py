"""`tern replay` over recordings of real servers: what agrees, what differs, and what is refused."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from engine_core.journal import Journal, Opened, Record, read
from protocol import columns
from protocol.client import EngineClient
from protocol.messages import EngineFacts
from protocol.sampling import SamplingParams
from protocol.sockets import fingerprint
from protocol.steps import Reset, StepResult
from scripts.cli import main
from tests.stack.conftest import Stack, serve, sliding_checkpoint, tiny_checkpoint
from tests.worker.adapters import write_adapter

if TYPE_CHECKING:
    from tests.stack.conftest import Serve

__all__ = ["serve", "sliding_checkpoint", "tiny_checkpoint"]

GREEDY = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=100, temperature=1, seed=7)


PROMPTS = [[1, 2, 3] * 10 + [number] for number in range(1, 5)] + [[9], [8, 7], [6] * 40, [5] * 5]
"""Some with a common prefix."""


async def ask(stack: Stack, *, kill_worker: bool, adapters: Sequence[str] = ("",)) -> int:
    """All prompts at once; the worker dies in the middle, if it shall. How many tokens came."""
    async with asyncio.timeout(60):
        client = await EngineClient.attach(stack.endpoint_file)
        streams = [
            client.submit(prompt, GREEDY if len(prompt) % 2 else SEEDED, adapter=adapters[i % len(adapters)])
            for i, prompt in enumerate(PROMPTS)
        ]
        await anext(streams[0])
        if kill_worker:
            os.kill(stack.pids["worker"][0], signal.SIGKILL)
        for stream in streams:
            async for _ in stream:
                pass
        if kill_worker:  # the stub may have answered all of them before it died: this one comes after that
            async for _ in client.submit(PROMPTS[0], GREEDY):
                pass
        await client.close()
    return sum(len(stream.token_ids) for stream in streams)


def rewrite(path: Path, records: list[Record]) -> None:
    """A journal of these."""
    path.unlink(missing_ok=True)
    journal = Journal(str(path), 1 << 30)
    for record in records:
        journal.write(record)
    journal.close()


@pytest.fixture
def flags(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """Of the recorded stub."""
    adapter = write_adapter(tmp_path / "red", {"model.layers.0.self_attn.q_proj": (64, 64)})
    return ["--model", str(tiny_checkpoint), "--worker", "stub", "--lora", f"red={adapter}"]


@pytest.fixture
def recording(serve: "Serve", tmp_path: Path, flags: list[str]) -> Path:
    """The journal of a stub server whose worker was killed once, and which was told to stop."""
    path = tmp_path / "journal"
    stack = serve("--journal", str(path), *flags[-2:])
    asyncio.run(ask(stack, kill_worker=True, adapters=("", "red", "")))
    assert stack.ends(signal.SIGTERM) == 0
    return path


def test_a_recording_over_a_kill_agrees_and_a_flipped_token_is_found(
    recording: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (f"{recording}.old", str(recording)):
        assert main(["replay", path, *flags]) == 0
        assert "agreed: 1 epochs" in capsys.readouterr().out

    records = list(read(str(recording)))
    place, result = [(i, r) for i, r in enumerate(records) if isinstance(r, StepResult)][10]
    token_ids = columns.unpack_ids(result.token_ids)
    right, token_ids[0] = token_ids[0], (token_ids[0] + 1) % 512
    records[place] = msgspec.structs.replace(result, token_ids=token_ids.tobytes())
    rewrite(recording, records)
    assert main(["replay", str(recording), *flags]) == 1
    output = capsys.readouterr().out
    assert f"epoch {result.epoch}, step {result.step}, row 0: " in output
    assert f"recorded token {token_ids[0]}, replayed token {right}" in output
    assert "[" not in output, "no tokens of anybody unless asked for"

    assert main(["replay", str(recording), "--show-tokens", *flags]) == 1
    shown = capsys.readouterr().out
    assert any(f"prompt  {prompt}\n" in shown for prompt in PROMPTS)


def test_a_recording_that_was_cut_off_is_replayed_up_to_there(
    recording: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recording.write_bytes(recording.read_bytes()[:-3])
    assert main(["replay", str(recording), *flags]) == 0
    assert "agreed" in capsys.readouterr().out
    assert main(["replay", str(recording), *flags[:-2]]) == 78
    assert "name the model, --dtype, --lora" in capsys.readouterr().err


def test_a_real_model_with_a_window_replays_too(
    serve: "Serve", tmp_path: Path, sliding_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In fewer blocks than chunks of the default size would need."""
    path = tmp_path / "journal"
    flags = [
        "--block-size",
        "16",
        "--num-kv-blocks",
        "12",
        "--max-num-batched-tokens",
        "64",
        "--max-num-seqs",
        "16",
    ]
    stack = serve(*flags, "--journal", str(path), worker="torch", checkpoint=sliding_checkpoint)
    num_tokens = asyncio.run(ask(stack, kill_worker=False))
    assert stack.ends(signal.SIGTERM) == 0
    assert main(["replay", str(path), str(sliding_checkpoint), "--threads", "1"]) == 0
    assert f" {num_tokens:,} tokens" in capsys.readouterr().out


FACTS = EngineFacts("m", 512, 4096, 16, 64, (0,), 8)


@pytest.mark.parametrize(
    ("opened", "flags", "message"),
    [
        (Opened("other", "stub-512", FACTS), [], "recorded with wire schema other"),
        (Opened("", "stub-9", FACTS), [], "recorded with model m (stub-9), and this is "),
        (Opened("", "stub-512", FACTS), ["--block-size", "64"], "--block-size 64: recorded with 16"),
        (Opened("", "stub-512", FACTS), ["-tp", "2"], "a replay runs on one rank"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    opened: Opened,
    flags: list[str],
    message: str,
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "journal"
    opened = msgspec.structs.replace(opened, fingerprint=opened.fingerprint or fingerprint())
    rewrite(path, [opened, Reset(1)])
    arguments = ["--model", str(tiny_checkpoint), "--worker", "stub", *flags]
    assert main(["replay", str(path), *arguments]) == 78
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x01\x00\x00\x00\xc1"])
def test_what_is_no_journal_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    assert main(["replay", str(path)]) == 78
    assert "journal" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "none")]) == 78
    assert main(["replay", "--worker", "stub"]) == 78
