"""Certificates that cannot be used are found before anybody connects."""

import pytest

from frontend.certificate import check_certificate
from protocol.errors import StartupError
from protocol.options import FrontendOptions


def test_a_certificate_needs_its_key_and_both_must_be_readable() -> None:
    check_certificate(FrontendOptions())
    with pytest.raises(StartupError, match="--ssl-keyfile is missing"):
        check_certificate(FrontendOptions(ssl_certfile="x"))
    with pytest.raises(StartupError, match="--ssl-certfile is missing"):
        check_certificate(FrontendOptions(ssl_keyfile="x"))
    with pytest.raises(StartupError, match=r"cannot be used: No such file"):
        check_certificate(FrontendOptions(ssl_certfile="/nowhere", ssl_keyfile="/nowhere"))
