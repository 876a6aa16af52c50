"""Servers to be hurt, beside one that never is: `scene(*flags, restarts={"worker": 1})` and its oracles."""

from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts.model_path import BUNDLED
from tests.faults.load import KEY
from tests.faults.oracles import Reference, Scene, untouched
from tests.faults.remains import Remains
from tests.stack.conftest import Serve, Stack, serve, sliding_checkpoint, tiny_checkpoint
from tests.worker.adapters import write_adapter

if TYPE_CHECKING:
    from tests.conftest import Launch

__all__ = [
    "bundled_reference", "reference", "scene", "serve", "sliding_checkpoint", "sliding_reference",
    "tiny_checkpoint", "torch_reference", "unhurt",
]  # fmt: skip

NewScene = Callable[..., Scene]


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags for two adapters of the tiny checkpoint. All references serve them."""
    shapes = {"q_proj": (64, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
    modules = {
        f"model.layers.{i}.self_attn.{name}": shape for i in range(2) for name, shape in shapes.items()
    }
    folders = {
        name: write_adapter(tmp_path_factory.mktemp(name), modules, seed=seed)
        for seed, name in enumerate(("red", "blue"))
    }
    return "--lora", *(f"{name}={folder}" for name, folder in folders.items())


@pytest.fixture(scope="session")
def reference(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    launcher: "Callable[[Path], Launch]",
    lora: tuple[str, ...],
) -> Iterator[Reference]:
    """Of the stub worker."""
    yield from _reference("stub", tmp_path_factory, tiny_checkpoint, launcher, lora)


@pytest.fixture(scope="session")
def torch_reference(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    launcher: "Callable[[Path], Launch]",
    lora: tuple[str, ...],
) -> Iterator[Reference]:
    """Of a real model."""
    yield from _reference("torch", tmp_path_factory, tiny_checkpoint, launcher, lora)


@pytest.fixture(scope="session")
def bundled_reference(
    tmp_path_factory: pytest.TempPathFactory, launcher: "Callable[[Path], Launch]"
) -> Iterator[Reference]:
    """Of the bundled model."""
    named = ("--served-model-name", Stack.model)
    yield from _reference("torch", tmp_path_factory, BUNDLED, launcher, named)


@pytest.fixture(scope="session")
def sliding_reference(
    tmp_path_factory: pytest.TempPathFactory, sliding_checkpoint: Path, launcher: "Callable[[Path], Launch]"
) -> Iterator[Reference]:
    """Of the stub worker with a sliding window."""
    yield from _reference("stub", tmp_path_factory, sliding_checkpoint, launcher)


def _reference(
    worker: str,
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Path,
    launcher: "Callable[[Path], Launch]",
    more: tuple[str, ...] = (),
) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("reference")
    flags = ["--port", "0", "--run-dir", str(folder / "run"), "--worker", worker, "--threads", "1"]
    program = launcher(folder)("scripts.cli", "serve", str(checkpoint), *flags, *more, TERN_API_KEY=KEY)
    yield Reference(Stack(program, folder / "run"))


@pytest.fixture
def scene(serve: Serve, reference: Reference, request: pytest.FixtureRequest) -> NewScene:
    """scene(*flags, worker="stub", restarts={}, **environment): a server with a key, and its oracles.

    `worker`: stub, torch, or bundled: torch with the bundled model. With `sliding`, its (stub) model has a
    sliding window. What a scenario says of oracles beyond that: see Scene.
    """

    def make(
        *flags: str,
        worker: str = "stub",
        restarts: dict[str, int] | None = None,
        tracebacks: Collection[int] = (0,),
        stopped: bool = False,
        rolled: bool = False,
        abandoned: bool = False,
        sliding: bool = False,
        **environ: str,
    ) -> Scene:
        truth = reference if worker == "stub" else request.getfixturevalue(f"{worker}_reference")
        if worker == "bundled":
            worker, flags = "torch", ("--served-model-name", Stack.model, *flags)
            environ["checkpoint"] = str(BUNDLED)
        if sliding:
            truth = request.getfixturevalue("sliding_reference")
            environ["checkpoint"] = request.getfixturevalue("sliding_checkpoint")
        stack = serve(*flags, worker=worker, held=True, TERN_API_KEY=KEY, **environ)
        return Scene(
            stack, truth, restarts or {}, tracebacks=tracebacks, stopped=stopped, rolled=rolled,
            abandoned=abandoned,
        )  # fmt: skip

    return make


@pytest.fixture
async def unhurt(serve: Serve) -> AsyncIterator[Serve]:
    """unhurt(*flags, **environment): a server none of whose processes may notice what is done to it. At its
    end, all oracles are asked at which a test does not look itself."""
    before: list[tuple[Stack, dict[str, list[int]], Remains]] = []

    def start(*flags: str, **named: Any) -> Stack:
        stack = serve(*flags, **named)
        before.append((stack, stack.pids, Remains(stack)))
        return stack

    yield start
    for stack, pids, remains in before:
        await untouched(stack, pids, remains)
