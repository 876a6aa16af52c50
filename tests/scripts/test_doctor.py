"""`tern doctor`: findings, remedies and the exit code."""

import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from protocol.frontend_options import FrontendOptions
from protocol.options import ModelOptions, ServeOptions, ServerOptions
from scripts import doctor
from scripts.doctor import Finding


def test_on_this_machine_the_server_will_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "torch", lambda executable: iter([Finding("torch", "2")]))
    assert doctor.main(["--port", "0"], {"PATH": "/usr/bin:/bin", "NO_COLOR": "1"}) == 0
    told = capsys.readouterr().out
    for subject in (
        "Python",
        "cores",
        "memory",
        "packages",
        "torch",
        "compiler",
        "model",
        "address",
        "options",
        "locale",
    ):
        assert f" {subject} " in told, subject
    assert told.endswith("tern serve will start\n")


def test_a_port_in_use_is_a_failure_with_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "torch", lambda executable: iter(()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert doctor.main(["--port", port], {"TERN_LOG_LEVEL": "info"}) == 1
    told = capsys.readouterr().out
    assert f"failure address   port {port} on 127.0.0.1 is in use" in told
    assert "→ stop that one, or choose another with --port" in told
    assert told.endswith("tern serve will not start: address\n")


def test_torch_that_cannot_be_imported(tmp_path: Path) -> None:
    [finding] = doctor.torch("/bin/false")
    assert (finding.verdict, finding.detail) == ("failure", "cannot be imported")
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho \'{"torch": "2.13", "gpus": ["H100"], "triton": "3.9"}\'\n')
    fake.chmod(0o755)
    found = list(doctor.torch(str(fake)))
    assert [(one.subject, one.verdict) for one in found] == [("torch", "ok"), ("GPU", "warning")]
    assert found[1].detail == "H100, Triton 3.9"


@pytest.mark.parametrize(
    ("finding", "verdict", "detail"),
    [
        (doctor.python((3, 10, 1)), "failure", "3.10.1"),
        (doctor.memory(100 << 20, 1 << 30), "warning", "100 MiB available of 1.0 GiB"),
        (doctor.packages(["msgspec", "no-such-package"]), "failure", "missing: no-such-package"),
        (doctor.compiler("native", {"PATH": "/nowhere"}), "failure", "none of"),
        (doctor.compiler("auto", {"PATH": "/nowhere"}), "warning", "none of"),
        (doctor.compiler("torch", {"PATH": "/nowhere"}), "ok", "not needed"),
        (doctor.files(1024), "warning", "1,024"),
        (doctor.files(resource.RLIM_INFINITY), "ok", "no limit"),
        (doctor.folders("/" + "x" * 100), "failure", "too long for a socket's path"),
        (doctor.text("ANSI_X3.4-1968"), "warning", "ANSI"),
        (doctor.text("UTF-8"), "ok", "UTF-8"),
    ],
)
def test_findings(finding: Finding, verdict: str, detail: str) -> None:
    assert finding.verdict == verdict
    assert detail in finding.detail
    assert (finding.verdict == "ok") == (not finding.remedy)


def test_models(tmp_path: Path) -> None:
    missing = doctor.model(ServeOptions(model=ModelOptions(model="/nowhere")), {})
    assert (missing.verdict, missing.detail) == ("failure", "--model /nowhere: no such folder")
    absent = doctor.model(ServeOptions(model=ModelOptions(model="org/name")), {"HF_HOME": str(tmp_path)})
    assert (absent.verdict, absent.remedy) == ("warning", "")
    assert "would be downloaded" in absent.detail


def test_a_unix_socket_is_only_tried(tmp_path: Path) -> None:
    path = tmp_path / "s"
    finding = doctor.address(ServeOptions(frontend=FrontendOptions(uds=str(path))))
    assert (finding.verdict, finding.detail) == ("ok", f"{path} is free")
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frontend": FrontendOptions(api_key_file="/nowhere/keys")}, "--api-key-file /nowhere/keys"),
        ({"frontend": FrontendOptions(ssl_certfile="/nowhere/cert")}, "--ssl-keyfile is missing"),
        (
            {"frontend": FrontendOptions(chat_template="/nowhere/t")},
            "--chat-template /nowhere/t: there is no",
        ),
        ({"server": ServerOptions(engine_endpoint="tcp://127.0.0.1:5")}, "--engine-endpoint needs"),
        ({"server": ServerOptions(journal="/nowhere/journal")}, "--journal: there is no folder /nowhere"),
    ],
)
def test_what_options_name_is_looked_at(options: dict[str, Any], told: str) -> None:
    finding = doctor.named(ServeOptions(**options))
    assert finding.verdict == "failure"
    assert told in finding.detail


def test_the_run_folder_is_judged_as_the_server_would(tmp_path: Path) -> None:
    assert doctor.folders(str(tmp_path / "new")).verdict == "ok"
    assert not list(tmp_path.iterdir())
    tmp_path.chmod(0o755)
    finding = doctor.folders(str(tmp_path))
    assert finding.verdict == "failure"
    assert "not a folder that only you can enter" in finding.detail


def test_the_folder_for_crashes_is_not_made(tmp_path: Path) -> None:
    options = ServeOptions(server=ServerOptions(crash_dir=str(tmp_path / "crashes")))
    assert doctor.named(options).verdict == "ok"
    assert not list(tmp_path.iterdir())
