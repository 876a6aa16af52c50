"""The least that an ASGI server must do per token: an application that only sends, under the same uvicorn.

`python -m scripts.bench.bare_send LISTEN_FD NUM_CHUNKS` serves until it is killed. GET /cpu answers with the
CPU seconds used so far.
"""

import socket
import sys
import time
from typing import Any

import uvicorn

_CHUNK = (
    b'data: {"id":"cmpl-0123456789abcdef01234567","object":"text_completion","created":1700000000,'
    b'"model":"tern-mini","choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}]}\n\n'
)


def main(listen_fd: str, num_chunks: str) -> None:
    count = int(num_chunks)
    usage = b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\ndata: [DONE]\n\n' % count

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/cpu":
            seconds = repr(time.process_time()).encode()
            await send({"type": "http.response.body", "body": seconds, "more_body": False})
            return
        for _ in range(count):
            await send({"type": "http.response.body", "body": _CHUNK, "more_body": True})
        await send({"type": "http.response.body", "body": usage, "more_body": False})

    config = uvicorn.Config(
        application, loop="uvloop", http="httptools", lifespan="off", log_level="error", access_log=False
    )
    uvicorn.Server(config).run([socket.socket(fileno=int(listen_fd))])


if __name__ == "__main__":
    main(*sys.argv[1:])
