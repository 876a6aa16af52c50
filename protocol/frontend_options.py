"""Options of the frontends, as options.py declares those of everyone else."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class FrontendOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: any free one")] = 8000
    uds: Annotated[
        str, Meta(description="path of a unix socket to listen on instead; only you can connect to it")
    ] = ""
    ssl_certfile: Annotated[
        str, Meta(description="file of a certificate chain (PEM): serve https; needs ssl_keyfile")
    ] = ""
    ssl_keyfile: Annotated[str, Meta(description="file of the certificate's private key (PEM)")] = ""
    root_path: Annotated[
        str,
        Meta(
            pattern="^(/[^/?#]+)*$",
            description="prefix of all paths, such as /llm, under which a proxy passes requests on; they are "
            "answered with and without it",
        ),
    ] = ""
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(description="origins whose pages may call the API from a browser (CORS); *: all; none: off"),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="names under which a server for this machine only, without keys, may be asked too, "
            "as through a proxy; *: any"
        ),
    ] = ()
    metrics_prefix: Annotated[
        str,
        Meta(
            pattern="^[a-zA-Z_:][a-zA-Z0-9_:]*$",
            description="of the names in /metrics; vllm: is what dashboards for vLLM look for",
        ),
    ] = "tern_"
    log_requests: Annotated[
        bool, Meta(description="log a line for each request: id, times, token counts; never its text")
    ] = False
    frontends: Annotated[int, Meta(ge=1, le=64, description="frontend processes sharing the port")] = 1
    api_key: Annotated[
        tuple[str, ...],
        Meta(description="keys that clients must send; better given as TERN_API_KEY", extra={"secret": True}),
    ] = ()
    api_key_file: Annotated[str, Meta(description="file of more such keys, one a line")] = ""
    max_body_bytes: Annotated[
        int, Meta(ge=1024, description="longest HTTP body", extra={"unit": "bytes"})
    ] = 8 << 20
    default_max_tokens: Annotated[
        int, Meta(ge=0, description="for chat requests that name none; 0: what fits the context")
    ] = 0
    chat_template: Annotated[str, Meta(description="file of a chat template that replaces the model's")] = ""
    tool_call_parser: Annotated[
        Literal[
            "auto",
            "none",
            "hermes",
            "llama3_json",
            "mistral",
            "pythonic",
            "qwen3_coder",
            "glm45",
            "deepseek_v3",
            "deepseek_v32",
            "openai",
        ],
        Meta(description="how the model writes tool calls; auto: as its chat template shows"),
    ] = "auto"
    reasoning_parser: Annotated[
        Literal["auto", "none", "think", "mistral"],
        Meta(
            description="between which marks the model reasons (<think>, or [THINK] of mistral), which is "
            "then kept apart from its answer; auto: as its chat template shows"
        ),
    ] = "auto"
    sse_keep_alive_interval: Annotated[
        float,
        Meta(
            ge=0,
            le=1e6,
            description="seconds after which a stream that has nothing to say sends a ping, so that proxies "
            "do not cut it; 0: never",
        ),
    ] = 15.0
    request_timeout: Annotated[
        float, Meta(ge=0, le=1e6, description="seconds that a request may take, queue included; 0: no limit")
    ] = 0.0
    detach_grace: Annotated[
        float,
        Meta(
            ge=0,
            description="seconds for which a request with an Idempotency-Key goes on without its client, and "
            "its answer is kept",
        ),
    ] = 30.0
    response_store_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="of past responses that /v1/responses can go on from, in files of the run directory; "
            "0: none is stored",
            extra={"unit": "bytes"},
        ),
    ] = 64 << 20
    receive_timeout: Annotated[
        float, Meta(gt=0, description="seconds that a client has for its headers, and again for its body")
    ] = 10.0
    write_stall: Annotated[
        float, Meta(gt=0, description="seconds without reading after which a client counts as gone")
    ] = 30.0
    playground: Annotated[
        bool, Meta(description="serve the playground and the page of the live engine, at / and /live")
    ] = True
    max_connections: Annotated[
        int, Meta(ge=0, description="per frontend; 0: what the limit on open files allows")
    ] = 0
