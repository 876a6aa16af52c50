"""LocalServer: a `tern serve` of one's own, on a socket in a private folder. Nobody else can ask it.

It ends with `close`, and with the process that started it, however that ends. What it writes goes into a
file; if it cannot start, its last line is the cause.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

from msgspec import structs

from protocol.control import die_with_parent
from protocol.errors import StartupError
from protocol.frontend_options import FrontendOptions
from protocol.options import ServeOptions

from .api_client import TROUBLE, ApiClient
from .flags import FOR_WORKERS, as_flags
from .process import packages_environment
from .run_dir import PREFIX, remove_abandoned

LOOK_EVERY_S = 0.05
STOP_GRACE_S = 15.0
_OWN = FrontendOptions()


class LocalServer:
    """To be made by a thread that lives as long as the server is needed: the kernel ties the two."""

    def __init__(self, options: ServeOptions) -> None:
        remove_abandoned()  # of those that were killed
        self._folder = tempfile.mkdtemp(prefix=PREFIX)
        self._socket = os.path.join(self._folder, "http")
        self._log = os.path.join(self._folder, "log")
        frontend = structs.replace(
            options.frontend,
            uds=self._socket,
            host=_OWN.host,
            port=_OWN.port,
            ssl_certfile="",
            ssl_keyfile="",
            api_key=(),
            api_key_file="",
        )
        options = structs.replace(
            options, frontend=frontend, server=structs.replace(options.server, run_dir=self._folder)
        )
        command = [sys.executable, "-P", "-m", "scripts.cli", "serve", *as_flags(options)]
        environ = packages_environment()
        kept = {name: text for name, text in environ.items() if not name.startswith("TERN_")}
        kept |= {name: environ[name] for name in FOR_WORKERS & environ.keys()}
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                env=kept,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for us; we then stop it
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    @property
    def url(self) -> str:
        """For ApiClient."""
        return f"unix:{self._socket}"

    def wait_until_ready(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Raises StartupError with the server's own reason if it ends instead."""
        while True:
            self.check()
            client = ApiClient(self.url, timeout_s=2.0)
            try:
                if client.get("/health/ready").status == 200:
                    return
            except TROUBLE:
                pass  # it has not come so far
            finally:
                client.close()
            on_wait()
            time.sleep(LOOK_EVERY_S)

    def check(self) -> None:
        """Raises StartupError if it has ended."""
        if self._process.poll() is not None:
            raise StartupError(f"the server has ended: {self._last_words()}")

    def close(self) -> None:
        """Stop it, and leave nothing."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()  # its children die with it
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last_words(self) -> str:
        try:
            with open(self._log, errors="replace") as log:
                lines = log.read().splitlines()
        except OSError:
            lines = []
        cause = next((line for line in reversed(lines) if "error: " in line), (lines or [""])[-1])
        return cause.partition("error: ")[2] or cause or f"exit code {self._process.returncode}"
