"""What a figure was measured on: every table begins with this line."""

import datetime
import os
import platform
import subprocess
from pathlib import Path


def describe() -> str:
    """Processor, cores, Python, date and commit, for people."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "no commit"
    load = os.getloadavg()[0]
    return (
        f"{processor}, {os.cpu_count()} cores (load {load:.1f} before), Python {platform.python_version()}, "
        f"{datetime.date.today().isoformat()}, commit {commit}"
    )
