"""`tern serve`: from options to a running supervisor.

Everything that can be wrong before the first process starts is found here, and the port first: a
mistake costs a second, not the time to load a model.
"""

import os
import resource
import time
from collections.abc import Mapping, Sequence

import msgspec

from worker.memory import available_memory, total_memory

from . import memory_plan, named_files, output_paths
from .flags import parse_serve
from .listening import listeners_for, stop_listening, url
from .model_path import resolve
from .restart_policy import RestartPolicy
from .run_dir import RunDir
from .startup import Memory, Serving, banner
from .supervisor import Supervisor
from .terminal import Terminal
from .units import make_board, plan_units
from .version import version
from .watch import Watch

OPEN_FILES = 1 << 20
"""Enough for any number of connections. Without a limit some libraries make tables of gigabytes."""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until told to stop: 0 after SIGTERM, 130 after Ctrl-C. Raises StartupError."""
    began = time.monotonic()
    options = parse_serve(argv, environ)
    os.umask(0o077)
    _allow_many_open_files()
    uds = os.path.abspath(options.frontend.uds) if options.frontend.uds else ""
    options = msgspec.structs.replace(options, frontend=msgspec.structs.replace(options.frontend, uds=uds))
    listeners = listeners_for(options.frontend)
    options = msgspec.structs.replace(
        options,
        model=resolve(options.model, environ),
        server=output_paths.resolve(options.server),
    )
    named_files.check(options)
    memory_plan.check(options, available_memory())
    terminal = Terminal(environ, options.server.log_level, as_json=options.server.log_format == "json")
    run_dir = RunDir.open(options.server.run_dir)
    board = make_board(options)
    serving = Serving(
        version=version(),
        url=url(listeners[0], "https" if options.frontend.ssl_certfile else "http"),
        model_name=options.model.served_model_name[0],
        has_api_key=bool(options.frontend.api_key or options.frontend.api_key_file),
        endpoint_file=run_dir.endpoint_file,
        workers=options.parallel.tensor_parallel_size,
        has_playground=options.frontend.playground,
    )

    def announce(facts: Mapping[str, str], pids: Mapping[str, Sequence[int]], started_in: str) -> None:
        memory = Memory(available_memory(), total_memory())
        headline = terminal.headline(f"Tern {serving.version} is ready")
        terminal.show(
            banner(serving, facts, pids, f"{headline} in {started_in}", memory),
            message="ready",
            url=serving.url,
            model=serving.model_name,
            started_in=started_in,
            facts=facts,
            memory={"available": memory.available, "total": memory.total},
            pids=pids,
        )

    try:
        return Supervisor(
            units=plan_units(options, run_dir, listeners, board.fd),
            policy=RestartPolicy(options.server.max_restarts, options.server.restart_window_s),
            watch=Watch(board, began, enabled=options.server.hang_detection),
            run_dir=run_dir,
            terminal=terminal,
            began=began,
            shutdown_timeout_s=options.server.shutdown_timeout,
            announce=announce,
        ).run()
    finally:
        board.close()
        run_dir.remove()
        stop_listening(listeners, uds)


def _allow_many_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
