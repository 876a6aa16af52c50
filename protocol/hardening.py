"""What a child gives up before it touches anything: privileges, core files, others' access to its files.

Knows nothing of what the process is for. A core file of a worker or of a frontend would hold prompts.
"""

import ctypes
import os
import resource
import sys
from contextlib import suppress

_PR_SET_NO_NEW_PRIVS = 38


def harden(oom_score_adj: int) -> None:
    """Of this process, for good. `oom_score_adj` 0 … 1000: the higher, the sooner the kernel's choice."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Less than the parent's needs a privilege; it is only a preference.
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(oom_score_adj))
