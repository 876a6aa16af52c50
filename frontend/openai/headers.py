"""What a generating endpoint's request says in its headers. Every value that makes no sense is refused.

Idempotency-Key     this request goes on without its client, and the same one again is the same request
Last-Event-ID       with the former: the client has the stream up to here; see resumable.py
X-Request-Timeout   seconds that it may take, queue included
"""

import re
import uuid
from collections.abc import Iterable

from msgspec import Struct
from starlette.types import Scope

from protocol.errors import InvalidRequest

from ..idempotency import Key

IDEMPOTENCY_KEY, LAST_EVENT_ID, TIMEOUT = "Idempotency-Key", "Last-Event-ID", "X-Request-Timeout"
KEY_PATTERN = "^[!-~]{1,255}$"
POSITIONS_PATTERN = r"^\d{1,9}(\.\d{1,9})*$"
SECONDS_PATTERN = r"^\d{1,9}(\.\d{1,9})?$"


class Terms(Struct, frozen=True, kw_only=True):
    """Under which a request is answered."""

    tenant: str
    response_id: str
    """Of the answer, without the prefix of its kind; the same again with the same key."""
    key: Key | None = None
    positions: tuple[int, ...] | None = None
    """Of each choice, the output tokens whose text the client has."""
    timeout_s: float | None = None


def read_terms(scope: Scope, body: bytes, most_timeout_s: float) -> Terms:
    """`most_timeout_s`: the server's own limit, 0 for none. Raises InvalidRequest."""
    given = scope["headers"]
    tenant: str = scope.get("state", {}).get("tenant", "")
    key = _read(given, IDEMPOTENCY_KEY, KEY_PATTERN, "1 … 255 visible ASCII characters")
    positions = _read(given, LAST_EVENT_ID, POSITIONS_PATTERN, "the id of an event: a number per choice")
    if positions is not None and key is None:
        raise InvalidRequest(
            f"{LAST_EVENT_ID}: a stream goes on only with the {IDEMPOTENCY_KEY} that it was begun with",
            param=LAST_EVENT_ID,
        )
    seconds = _read(given, TIMEOUT, SECONDS_PATTERN, "seconds, such as 30 or 0.5")
    if seconds is not None and not float(seconds):
        raise InvalidRequest(f"{TIMEOUT}: expected more than 0 seconds, got {seconds}", param=TIMEOUT)
    limits = [limit for limit in (most_timeout_s, float(seconds or 0)) if limit]
    whole_key = Key.of(tenant, key, scope["method"], scope["path"], body) if key is not None else None
    return Terms(
        tenant=tenant,
        response_id=whole_key.root if whole_key is not None else uuid.uuid4().hex,
        key=whole_key,
        positions=tuple(map(int, positions.split("."))) if positions is not None else None,
        timeout_s=min(limits, default=None),
    )


def _read(headers: Iterable[tuple[bytes, bytes]], name: str, pattern: str, rule: str) -> str | None:
    values = [value for key, value in headers if key == name.lower().encode()]
    if not values:
        return None
    text = values[0].decode("latin-1")
    if len(values) > 1 or re.fullmatch(pattern, text, re.ASCII) is None:
        raise InvalidRequest(f"{name}: expected {rule}", param=name)
    return text
