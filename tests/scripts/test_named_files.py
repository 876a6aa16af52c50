"""What options name is looked at before the first process, and told with its flag and a remedy."""

from pathlib import Path

import pytest

from protocol.errors import StartupError
from protocol.frontend_options import FrontendOptions
from protocol.options import ServeOptions, ServerOptions
from scripts import named_files


def refusal(options: ServeOptions) -> str:
    with pytest.raises(StartupError) as caught:
        named_files.check(options)
    assert caught.value.hint
    return caught.value.message


def test_what_is_in_order_passes(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\none\n\ntwo\n")
    (tmp_path / "template").write_text("{{ messages[0].content }}")
    frontend = FrontendOptions(
        api_key=("zero",), api_key_file=str(tmp_path / "keys"), chat_template=str(tmp_path / "template")
    )
    assert named_files.check(ServeOptions(frontend=frontend)) == ("zero", "one", "two")
    assert named_files.check(ServeOptions()) == ()


def test_keys() -> None:
    message = refusal(ServeOptions(frontend=FrontendOptions(api_key_file="/nowhere")))
    assert message == "--api-key-file /nowhere: cannot be read: No such file or directory"


def test_certificates() -> None:
    message = refusal(ServeOptions(frontend=FrontendOptions(ssl_certfile="/nowhere", ssl_keyfile=__file__)))
    assert message == "--ssl-certfile /nowhere: there is no such file"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no such file"),
        (b"{% if x %}\n", "does not compile: Unexpected end of template"),
        (b"\xff", "cannot be read: it is not UTF-8"),
    ],
)
def test_templates(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "template"
    if content is not None:
        path.write_bytes(content)
    message = refusal(ServeOptions(frontend=FrontendOptions(chat_template=str(path))))
    assert message.startswith(f"--chat-template {path}")
    assert told in message


def test_curve_keys(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short\n")
    server = ServerOptions(
        engine_endpoint="tcp://127.0.0.1:5",
        curve_secret_key=str(tmp_path / "key"),
        curve_allowed_keys="/nowhere",
    )
    assert refusal(ServeOptions(server=server)).startswith(f"--curve-secret-key {tmp_path}/key: holds no key")
