"""The import arrows, the torch-free packages, and what is shipped."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "frontend", "engine_core", "worker", "scripts")
MAY_IMPORT = {
    "protocol": {"protocol"},
    "frontend": {"protocol", "frontend"},
    "engine_core": {"protocol", "engine_core"},
    "worker": {"protocol", "worker"},
    "scripts": set(PACKAGES),
}
HEAVY = ("torch", "transformers", "triton")
ONE_IDEA_EACH = ("train_bundled_model.py",)
"""A recipe that is one file on purpose."""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, module) of every import statement in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for level, module in imports(path):
            top = module.split(".")[0]
            if level == 0 and top in PACKAGES:
                assert top in MAY_IMPORT[package], f"{path} imports {module}"
                if package not in ("scripts", "protocol"):
                    assert top != package, f"{path} imports its own package by its absolute name"
            assert top != "tests", f"{path} imports tests"


def modules_after(statement: str) -> set[str]:
    """Names of all modules loaded after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_only_models_in_its_code_need_transformers() -> None:
    """It takes seconds to import, which a model that Tern declares must not wait for."""
    users = {path.name for path in (ROOT / "worker").rglob("*.py") for _, m in imports(path) if HEAVY[1] in m}
    assert users == {
        "registry.py",  # within the function that builds such a model
        "transformers_attention.py",
        "transformers_experts.py",
        "transformers_linear.py",
        "transformers_model.py",
        "transformers_weights.py",
    }
    assert "transformers" not in modules_after("import worker.runner")


@pytest.mark.parametrize(
    "statement",
    [
        "import protocol.client, protocol.control",
        "import engine_core.engine",
        "import frontend.app",
        "import worker.worker, worker.stub",
        "import scripts.supervisor",
    ],
)
def test_only_the_worker_needs_torch(statement: str) -> None:
    assert not modules_after(statement) & set(HEAVY)


def test_attaching_to_an_engine_core_needs_only_msgspec_and_pyzmq() -> None:
    loaded = {name.split(".")[0] for name in modules_after("import protocol.client")}
    installed = {"starlette", "uvicorn", "uvloop", "numpy", "tokenizers", "jinja2", "prometheus_client"}
    assert {"msgspec", "zmq"} <= loaded
    assert not loaded & installed


def test_the_supervisor_is_light() -> None:
    loaded = {name.split(".")[0] for name in modules_after("import scripts.supervisor")}
    assert not loaded & {"zmq", "starlette", "uvicorn", "tokenizers", "numpy"}


def test_the_wheel_holds_exactly_these_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(PACKAGES)
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(PACKAGES)


def test_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    files = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore", ".ci"}
    assert top <= {*PACKAGES, "tests", "docs", "models", *files}


def test_no_file_is_long_enough_to_hide_a_second_idea() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines <= 400 or path.name in ONE_IDEA_EACH, f"{path} has {lines} lines"


def test_nothing_on_any_path_unpickles_or_evaluates() -> None:
    banned = {"pickle", "cloudpickle", "marshal", "dill", "shelve", "joblib", "multiprocessing"}
    loaders = {"torch", "np", "numpy", "yaml"}
    """`load` of these can run what it reads. The trainer reads its own state, and only numbers of it."""
    verbs = ("all_gather", "gather", "broadcast", "scatter", "send", "recv")
    collectives = {f"{verb}_object" for verb in verbs}
    objects = {"send_pyobj", "recv_pyobj", "ProcessPoolExecutor", "allow_pickle"}
    objects |= collectives | {f"{name}_list" for name in collectives}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for _, module in imports(path):
                assert module.split(".")[0] not in banned, f"{path} imports {module}"
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in ("eval", "exec"), f"{path} calls {node.func.id}"
                if isinstance(node, ast.Attribute):
                    assert node.attr not in objects, f"{path} uses {node.attr}"
                    owner = node.value.id if isinstance(node.value, ast.Name) else ""
                    loads = node.attr == "load" and owner in loaders
                    assert not loads or path.name == "train_bundled_model.py", f"{path} calls {owner}.load"
                if isinstance(node, ast.keyword):
                    assert node.arg not in objects, f"{path} passes {node.arg}"


def test_the_wall_clock_decides_nothing() -> None:
    """It may jump: only what people read comes from it, and a number that the last server did not have."""
    for_people = {
        "frontend/request_log.py",
        "frontend/service.py",
        "frontend/chat_template.py",
        "frontend/live.py",
    }
    allowed = for_people | {"scripts/terminal.py"} | {"engine_core/crash_report.py", "scripts/supervisor.py"}
    wall = {"time", "time_ns", "localtime", "gmtime", "strftime", "now", "utcnow", "today"}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    clock = node.value.id in ("time", "datetime", "date") and node.attr in wall
                    here = str(path.relative_to(ROOT))
                    assert not clock or here in allowed or "/bench/" in here or "/gpu/" in here, (
                        f"{path} line {node.lineno}"
                    )
