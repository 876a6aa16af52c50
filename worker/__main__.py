"""`python -m worker`: joins its supervisor, loads the model, and executes plans until told to quit."""

import os
import sys

from protocol.config import WorkerConfig
from protocol.control import ChildChannel, Failed, Phase, enter
from protocol.errors import StartupError

from .worker import Runner, Worker


def load(config: WorkerConfig, channel: ChildChannel, *, stub: bool) -> Runner:
    """The runner of this rank; progress goes to the supervisor."""

    def report(name: str, detail: str, fraction: float | None) -> None:
        channel.send(Phase(name, detail, fraction))

    # Imported late: the stub must run without torch, and importing torch is itself a phase of seconds.
    if stub:
        from .stub import StubRunner

        return StubRunner(config)
    report("importing torch", "", None)
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # read when torch is loaded; see threads.py
    from .runner import TorchRunner

    return TorchRunner(config, report)


def main() -> int:
    channel, config = enter(WorkerConfig)
    try:
        runner = load(config, channel, stub="--stub" in sys.argv[1:])
        Worker(config, channel, runner).run()
    except StartupError as error:
        channel.send(Failed.of(error))
        return error.exit_code
    except Exception as error:
        channel.send(Failed.of(error))
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
