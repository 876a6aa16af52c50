"""How many things a JSON body is made of, counted before anything is made of them. Knows no field.

To decode holds up the whole process for as long as it lasts: 10 ns a number, 50 a text, 150 an array or
object, so that 8 MB of `[[1]],` were a third of a second. What stands outside of texts is counted, in slices
between which others have their turn: 3 ms a MB.
"""

import asyncio

from protocol.errors import InvalidRequest

UNCOUNTED_BYTES = 1 << 16
"""Bodies up to here are decoded in 3 ms, whatever they hold."""
SLICE_BYTES = 1 << 18
MOST_CONTAINERS = 1 << 15
"""Arrays and objects. 8192 messages with a call each have as many; schemas of tools, one for 60 bytes."""
MOST_TEXTS = 1 << 17
"""Names of fields included."""
MOST_VALUES = 1 << 18
"""Numbers above all: as many token ids are 1.5 MB."""


async def check_items(body: bytes) -> None:
    """Raises InvalidRequest for more than is decoded in about 10 ms."""
    if len(body) <= UNCOUNTED_BYTES:
        return
    num_containers = num_quotes = num_values = start = 0
    while start < len(body):
        part = body[start : start + SLICE_BYTES]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:  # cut within an escape
            part = body[start : start + SLICE_BYTES + 1]
        start += len(part)
        pieces = part.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(pieces[num_quotes % 2 :: 2])
        num_quotes += len(pieces) - 1
        num_containers += outside.count(b"[") + outside.count(b"{")
        num_values += outside.count(b",")
        _check(num_containers, MOST_CONTAINERS, "arrays and objects")
        _check(num_quotes // 2, MOST_TEXTS, "texts and names")
        _check(num_values, MOST_VALUES, "values")
        await asyncio.sleep(0)


def _check(count: int, most: int, what: str) -> None:
    if count > most:
        raise InvalidRequest(f"the body holds more than {most} {what}; send several requests")
