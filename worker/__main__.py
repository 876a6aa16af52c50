"""`python -m worker`: joins its supervisor, loads the model, and executes plans until told to quit."""

import gc
import os
import sys
import traceback
from functools import partial

from protocol.config import WorkerConfig
from protocol.control import ChildChannel, Keep, Phase, enter
from protocol.errors import StartupError
from protocol.progress import Progress

from .failures import last_words
from .faults import faulty, killed_while_loading
from .step_budget import StepBudget
from .worker import LONG_BUDGET_S, Runner, Worker


def load(config: WorkerConfig, channel: ChildChannel, progress: Progress, *, stub: bool) -> Runner:
    """The runner of this rank; each part of loading is told to the supervisor, and is a beat."""

    def report(name: str, detail: str, fraction: float | None) -> None:
        progress.busy(LONG_BUDGET_S)
        channel.send(Phase(name, detail, fraction))

    # Imported late: the stub must run without torch, and importing torch is itself a phase of seconds.
    if stub:
        from .stub import StubRunner

        progress.busy(LONG_BUDGET_S)
        return StubRunner(config)
    report("importing torch", "", None)
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # read when torch is loaded; see threads.py
    gc.disable()  # a sixth of the import is looking at what it has made so far, again and again
    from .runner import TorchRunner
    from .weight_image import WeightImage

    gc.freeze()
    gc.enable()

    def hand_on(descriptor: int) -> None:
        channel.send(Keep(), descriptor)

    told = killed_while_loading(report, config.rank, os.environ)
    return TorchRunner(config, told, partial(WeightImage.open, channel.take(), hand_on))


def main() -> int:
    channel, config = enter(WorkerConfig)
    progress = Progress(config.progress_fd, config.progress_row)
    budget = StepBudget()
    try:
        runner = load(config, channel, progress, stub="--stub" in sys.argv[1:])
        for num_tokens, context, seconds in runner.measured:
            budget.record(num_tokens, context, seconds)
        runner = faulty(runner, config.rank, budget, progress.beat, os.environ)
        gc.collect()
        gc.freeze()  # what exists now lives as long as the process: keep collections off it
        Worker(config, channel, runner, progress, budget).run()
    except Exception as error:
        failed = last_words(error)
        channel.send(failed)
        if not isinstance(error, StartupError):
            traceback.print_exc()
        sys.stderr.flush()
        # Not a return: what takes torch apart may touch a lost device, or wait for ranks that are gone.
        os._exit(failed.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
