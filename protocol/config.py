"""What each process is handed by the supervisor, once, at its start: frozen, only what concerns it.

What is learned later (number of KV blocks, model length) travels as a message and is never written back.
"""

from msgspec import Struct

from .frontend_options import FrontendOptions
from .options import CacheOptions, ModelOptions, ParallelOptions, SchedulerOptions


class FrontendConfig(Struct, frozen=True, kw_only=True, tag="frontend"):
    """`model.model` is a resolved path, `model.served_model_name` is not empty."""

    incarnation: int
    index: int
    """0 … frontends-1"""
    listen_fd: int
    model: ModelOptions
    frontend: FrontendOptions
    metrics_dir: str
    """Folder in which frontends find each other's metrics; empty for a single frontend."""
    responses_dir: str = ""
    """Folder in which frontends keep past responses; empty: they keep none."""
    log_level: str = "info"
    log_format: str = "text"
    progress_fd: int = -1
    """Of the progress board, inherited; -1: there is none."""
    progress_row: int = 0


class EngineCoreConfig(Struct, frozen=True, kw_only=True, tag="engine_core"):
    incarnation: int
    clients_endpoint: str
    workers_endpoint: str
    cache: CacheOptions
    scheduler: SchedulerOptions
    log_level: str = "info"
    progress_fd: int = -1
    progress_row: int = 0
    status_interval_s: float = 0.0
    journal: str = ""
    """File of the flight recorder; empty: off."""
    journal_bytes: int = 256 << 20
    crash_dir: str = ""
    """Folder for reports of crashes; empty: none are written."""
    detach_grace_s: float = 30.0
    engine_endpoint: str = ""
    """Of clients elsewhere, see ServerOptions; empty: there are none."""
    curve_secret_key: str = ""
    curve_allowed_keys: str = ""
    tokenizer: str = ""
    """Folder of a tokenizer.json, read at the first grammar; empty: grammars are refused."""


class WorkerConfig(Struct, frozen=True, kw_only=True, tag="worker"):
    """The group's ranks meet in `group_dir`, which is new for each incarnation of the group."""

    incarnation: int
    rank: int
    group_dir: str
    model: ModelOptions
    cache: CacheOptions
    scheduler: SchedulerOptions
    parallel: ParallelOptions
    log_level: str = "info"
    progress_fd: int = -1
    progress_row: int = 0
