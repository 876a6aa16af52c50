"""`tern doctor`: looks at this machine and says what will work, with the options that `tern serve` would get.

Changes nothing and downloads nothing. Each finding is a line; what keeps the server from starting is a
failure, with its remedy, and the exit code is then 1.
"""

import errno
import locale
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import msgspec
from msgspec import Struct, structs

from protocol.errors import StartupError
from protocol.options import ServeOptions
from worker.kernels.cpu.library import NoCompiler, find_compiler, how_to_install
from worker.memory import available_memory, total_memory

from . import memory_plan, named_files, output_paths, run_dir
from .flags import Command
from .listening import listeners_for, stop_listening
from .model_path import NEEDED, cached_snapshot, is_hub_id, resolve
from .quantities import amount
from .terminal import GREEN, RED, YELLOW, Terminal

DOCTOR = Command(
    "doctor",
    "Say what will work on this machine, with these options of tern serve.",
    ServeOptions,
    positional="model",
)
PACKAGES = ("msgspec", "pyzmq", "starlette", "uvicorn", "uvloop", "httptools", "tokenizers", "safetensors",
            "jinja2", "llguidance", "prometheus-client", "transformers", "numpy")  # fmt: skip
LEAST_FILES = 4096
LEAST_MEMORY = 1 << 30
LEAST_CAPABILITY = (8, 0)
"""Of a GPU, as worker/devices.py has it, which needs torch."""
TORCH_TIMEOUT_S = 120
ASK_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
try:
    import triton
    triton = triton.__version__
except ImportError:
    triton = ""
print(json.dumps({"torch": torch.__version__, "gpus": gpus, "capabilities": capabilities, "triton": triton}))
"""
Verdict = Literal["ok", "warning", "failure"]
COLOURS: dict[Verdict, str] = {"ok": GREEN, "warning": YELLOW, "failure": RED}


class Finding(Struct, frozen=True):
    """One line."""

    subject: str
    detail: str
    verdict: Verdict = "ok"
    remedy: str = ""


class _Torch(Struct, frozen=True):
    torch: str
    gpus: list[str]
    triton: str
    capabilities: list[tuple[int, int]] = []


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0: it will work; 1: something is missing. Raises StartupError for options that make no sense."""
    options, _ = DOCTOR.parse(argv, environ)
    terminal = Terminal(environ)
    findings = []
    for finding in examine(options, environ):
        findings.append(finding)
        sign = terminal.paint(sys.stdout, f"{finding.verdict:<8}", COLOURS[finding.verdict])
        print(f"{sign}{finding.subject:<10}{finding.detail}", flush=True)
        if finding.remedy:
            print(f"{'':18}→ {finding.remedy}", flush=True)
    failures = [finding.subject for finding in findings if finding.verdict == "failure"]
    if failures:
        print(f"\ntern serve will not start: {', '.join(failures)}")
    else:
        print("\ntern serve will start")
    return int(bool(failures))


def examine(options: ServeOptions, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything, in the order in which it would matter."""
    yield python(sys.version_info[:3])
    yield system()
    yield cores()
    yield memory(available_memory(), total_memory())
    yield packages(PACKAGES)
    yield from torch(sys.executable)
    yield compiler(options.parallel.cpu_kernels, environ)
    yield model(options, environ)
    yield address(options)
    yield named(options)
    yield files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield folders(options.server.run_dir)
    yield text(locale.getpreferredencoding(do_setlocale=False))


def python(found: tuple[int, ...]) -> Finding:
    told = ".".join(map(str, found))
    if found < (3, 11):
        return Finding("Python", told, "failure", "Python 3.11 or newer is needed")
    return Finding("Python", f"{told} at {sys.executable}")


def system() -> Finding:
    told = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if not hasattr(os, "pidfd_open"):
        return Finding("system", told, "failure", "Linux 5.3 or newer is needed")
    try:
        os.close(os.pidfd_open(os.getpid()))
        os.close(os.memfd_create("tern-doctor"))
    except OSError as error:
        return Finding("system", f"{told}: {error.strerror}", "failure", "allow pidfd_open and memfd_create")
    return Finding("system", told)


def cores() -> Finding:
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    note = "" if usable == there else f" of {there}"
    if usable < 2:
        return Finding("cores", f"{usable}{note}", "warning", "frontend and worker will share one")
    return Finding("cores", f"{usable}{note}")


def memory(available: int, total: int) -> Finding:
    told = f"{amount(available)} available of {amount(total)}"
    if available < LEAST_MEMORY:
        return Finding("memory", told, "warning", "free some: importing torch alone takes 200 MiB a worker")
    return Finding("memory", told)


def packages(names: Sequence[str]) -> Finding:
    missing = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", f"missing: {', '.join(missing)}", "failure", "run ./scripts/install")
    return Finding("packages", f"all {len(names)} are installed")


def torch(executable: str) -> Iterator[Finding]:
    """In a process of its own: it may crash."""
    try:
        done = subprocess.run(
            [executable, "-P", "-c", ASK_TORCH], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S
        )
        found = msgspec.json.decode(done.stdout.splitlines()[-1] if done.stdout else "", type=_Torch)
    except (OSError, subprocess.TimeoutExpired, msgspec.MsgspecError):
        yield Finding("torch", "cannot be imported", "failure", "run ./scripts/install")
        return
    yield Finding("torch", found.torch)
    if not found.gpus:
        yield Finding("GPU", "none: the model is computed on the CPU")
    else:
        with_triton = f", Triton {found.triton}" if found.triton else ", without Triton"
        usable = bool(found.triton) and all(one >= LEAST_CAPABILITY for one in found.capabilities)
        remedy = "--device auto computes there, which has not run on a GPU yet: try scripts/gpu_check, or cpu"
        if not usable:
            remedy = "--device auto computes on the CPU: a GPU needs Triton, and compute capability 8.0"
        yield Finding("GPU", f"{', '.join(found.gpus)}{with_triton}", "warning", remedy)


def compiler(choice: str, environ: Mapping[str, str]) -> Finding:
    if choice == "torch":
        return Finding("compiler", "not needed with --cpu-kernels torch")
    try:
        return Finding("compiler", f"{find_compiler(environ)}, for the CPU's kernels")
    except NoCompiler as error:
        verdict: Verdict = "failure" if choice == "native" else "warning"
        return Finding("compiler", f"{error}: torch's kernels, which are slower", verdict, how_to_install())


def model(options: ServeOptions, environ: Mapping[str, str]) -> Finding:
    """A hub id that is not here is not asked for."""
    given = options.model.model
    if (
        is_hub_id(given)
        and not os.path.isdir(given)
        and not cached_snapshot(given, NEEDED["--model"], environ)
    ):
        return Finding("model", f"{given} is not in the local cache; it would be downloaded", "warning")
    try:
        found = structs.replace(options, model=resolve(options.model, environ))
        memory_plan.check(found, available_memory())
    except StartupError as error:
        return Finding("model", error.message, "failure", error.hint)
    return Finding("model", f"{found.model.model}: its weights fit")


def address(options: ServeOptions) -> Finding:
    frontend = options.frontend
    where = frontend.uds or f"{frontend.host} port {frontend.port}"
    try:
        stop_listening(listeners_for(frontend), frontend.uds)
    except StartupError as error:
        return Finding("address", error.message, "failure", error.hint)
    return Finding("address", f"{where} is free")


def named(options: ServeOptions) -> Finding:
    """What options name besides the model. The folder for crash reports would be made: it is left out."""
    try:
        output_paths.resolve(structs.replace(options.server, crash_dir=""))
        keys = named_files.check(options)
    except StartupError as error:
        return Finding("options", error.message, "failure", error.hint)
    return Finding("options", f"what they name can be used; API keys: {len(keys) or 'none'}")


def files(hard_limit: int) -> Finding:
    if hard_limit == resource.RLIM_INFINITY:
        return Finding("files", "no limit on open files")
    told = f"{hard_limit:,} may be open at once"
    if hard_limit < LEAST_FILES:
        return Finding(
            "files", told, "warning", f"each connection takes one: ulimit -n {LEAST_FILES} or more"
        )
    return Finding("files", told)


def folders(asked: str) -> Finding:
    """Where sockets are made: --run-dir, or a folder in the temporary one."""
    base = asked or tempfile.gettempdir()
    try:
        run_dir.check(asked)
        with tempfile.TemporaryFile(dir=base if os.path.isdir(base) else os.path.dirname(base)) as file:
            file.write(b"tern")
            file.flush()
    except StartupError as error:
        return Finding("folders", error.message, "failure", error.hint)
    except OSError as error:  # a server goes on without what it could not write: only sockets must be
        verdict: Verdict = "warning" if error.errno == errno.ENOSPC else "failure"
        return Finding(
            "folders", f"{base}: {error.strerror}", verdict, "another folder: --run-dir, or TMPDIR"
        )
    return Finding("folders", f"{base} takes files and sockets")


def text(encoding: str) -> Finding:
    if encoding.lower().replace("-", "") != "utf8":
        return Finding("locale", encoding, "warning", "PYTHONUTF8=1, or a UTF-8 locale: LANG=C.UTF-8")
    return Finding("locale", encoding)
