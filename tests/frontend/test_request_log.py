"""The log of requests: one line each, whatever a client puts into its path."""

import logging

import pytest

from frontend.request_log import Ledger


def test_a_path_cannot_forge_fields_or_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = "/x\nstatus=200 \x1b[2J"
    with Ledger(lambda status: None, log_requests=True).entry(b"id", "GET", path) as entry:
        entry.status = 404
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert f"path={path!r} status=404" in record.getMessage()
    assert record.__dict__["fields"]["path"] == path, "JSON has escapes of its own"
