"""From a body's bytes to a typed request. Every mistake becomes an InvalidRequest that names the field.

`null` means omitted, as clients send it. Keys that nobody knows are accepted: clients of OpenAI send
many that change nothing (`user`, `store`, `metadata`, …). Those that would change the answer and are not
honoured are in refused.py.
"""

import gc
import re
from typing import Any, TypeVar

import msgspec
from starlette.types import Message, Receive

from protocol.errors import InvalidRequest

from .items import check_items

Request = TypeVar("Request")

_SHOWN_CHARS = 64
_EXPLAINED_BYTES = 1 << 16
"""Bodies up to here are decoded once more, untyped, to quote the value at fault."""
_WHERE = re.compile(r"^(?P<rule>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.+?)`")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


async def read_body(receive: Receive) -> bytes:
    """The whole body; its length is limited by the middleware. Raises InvalidRequest if it breaks off, or
    holds more than can be decoded while others wait."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        _check_connected(message)
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)  # one part is not copied
    await check_items(body)
    return body


def parse(decoder: msgspec.json.Decoder[Request], body: bytes) -> Request:
    """Decode and check types and ranges. Raises InvalidRequest."""
    collects = len(body) > _EXPLAINED_BYTES and gc.isenabled()
    if collects:
        gc.disable()  # which, with hundreds of thousands of new lists, takes longer than to decode them
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(error, body) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = "the body is empty" if not body.strip() else f"the body is not valid JSON: {error}"
        raise InvalidRequest(what) from None
    finally:
        if collects:
            gc.enable()


def _check_connected(message: Message) -> None:
    if message["type"] == "http.disconnect":
        raise InvalidRequest("the body broke off")  # to be read in tests only: the client is gone


def _explain(error: msgspec.ValidationError, body: bytes) -> InvalidRequest:
    """msgspec says "Expected `int` >= 1 - at `$.n`"; a client wants "n: expected int >= 1, got 0"."""
    found = _WHERE.match(str(error))
    assert found is not None
    rule, path = found["rule"].replace("`", ""), (found["path"] or "").replace("[...]", "")
    if (missing := _MISSING.match(found["rule"])) is not None:
        path = f"{path}.{missing['name']}" if path else missing["name"]
        return InvalidRequest(f"{path}: required, but missing", param=path)
    rule = rule[:1].lower() + rule[1:].replace(" | null", "")
    got = "" if ", got" in rule or not path else _quote(body, path)
    return InvalidRequest(f"{path or 'the body'}: {rule}{got}", param=path or None)


def _quote(body: bytes, path: str) -> str:
    if len(body) > _EXPLAINED_BYTES:
        return ""
    try:
        value: Any = msgspec.json.decode(body)
        for name, index in _STEP.findall(path):
            value = value[name] if name else value[int(index)]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        return ""
    shown = msgspec.json.encode(value).decode()
    return f", got {shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + '…'}"
