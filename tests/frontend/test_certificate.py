"""Certificates that cannot be used are found before anybody connects."""

import subprocess
from pathlib import Path

import pytest

from frontend.certificate import tls_context
from protocol.errors import StartupError
from protocol.frontend_options import FrontendOptions

STACK = Path(__file__).parents[1] / "stack"
CERTIFICATE, KEY = str(STACK / "localhost.pem"), str(STACK / "localhost.key")


def refusal(cert: str, key: str) -> StartupError:
    with pytest.raises(StartupError) as caught:
        tls_context(FrontendOptions(ssl_certfile=cert, ssl_keyfile=key))
    return caught.value


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def test_a_certificate_with_its_key() -> None:
    assert tls_context(FrontendOptions()) is None
    assert tls_context(FrontendOptions(ssl_certfile=CERTIFICATE, ssl_keyfile=KEY)) is not None


def test_a_certificate_needs_its_key_and_both_must_be_there() -> None:
    assert "--ssl-keyfile is missing" in refusal("x", "").message
    assert "--ssl-certfile is missing" in refusal("", "x").message
    assert refusal("/nowhere", KEY).message == "--ssl-certfile /nowhere: there is no such file"
    assert refusal(CERTIFICATE, "/nowhere").message == "--ssl-keyfile /nowhere: there is no such file"


def test_both_must_be_pem_and_belong_together(tmp_path: Path) -> None:
    assert "one of them is not a PEM file" in refusal(CERTIFICATE, __file__).message
    other = str(tmp_path / "key")
    openssl("genpkey", "-algorithm", "ed25519", "-out", other)
    assert "the key is that of another certificate" in refusal(CERTIFICATE, other).message


def test_nobody_is_asked_for_a_passphrase(tmp_path: Path) -> None:
    encrypted = str(tmp_path / "key")
    openssl("pkey", "-in", KEY, "-aes256", "-passout", "pass:x", "-out", encrypted)
    error = refusal(CERTIFICATE, encrypted)
    assert "the key is encrypted" in error.message
    assert "openssl pkey" in error.hint
