"""What the kernel says of a process that has hardened itself."""

import subprocess
import sys

CODE = """
import os, resource, sys
from protocol.hardening import harden
harden(int(sys.argv[1]))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")][0])
print(*resource.getrlimit(resource.RLIMIT_CORE))
print(open("/proc/self/oom_score_adj").read().strip())
print(oct(os.umask(0)))
"""


def harden(oom_score_adj: int) -> list[str]:
    command = [sys.executable, "-W", "error", "-c", CODE, str(oom_score_adj)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:4]


def test_privileges_core_files_and_umask_are_gone() -> None:
    assert harden(500) == ["1", "0 0", "500", "0o77"]


def test_a_preference_that_the_kernel_refuses_does_not_matter() -> None:
    no_new_privileges, core, adjustment, umask = harden(100_000)
    assert (no_new_privileges, core, umask) == ("1", "0 0", "0o77")
    assert int(adjustment) <= 1000
