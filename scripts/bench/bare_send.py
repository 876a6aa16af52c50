"""The least that an ASGI server must do per token: an application that only sends, under the same uvicorn.

`python -m scripts.bench.bare_send LISTEN_FD NUM_CHUNKS` serves until SIGINT and then prints the CPU
seconds it used after its first request.
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
    warm_cpu_s = 0.0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal warm_cpu_s
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(count):
            await send({"type": "http.response.body", "body": _CHUNK, "more_body": True})
        await send({"type": "http.response.body", "body": usage, "more_body": False})
        warm_cpu_s = warm_cpu_s or time.process_time()

    config = uvicorn.Config(
        application, loop="uvloop", http="httptools", lifespan="off", log_level="error", access_log=False
    )
    server = uvicorn.Server(config)
    try:
        server.run([socket.socket(fileno=int(listen_fd))])
    except KeyboardInterrupt:  # uvicorn raises the signal again once it has stopped
        print(time.process_time() - warm_cpu_s, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
