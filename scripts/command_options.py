"""Options of every command, declared as those of `tern serve` are (protocol/options.py).

A command's own section has variables of its own (`temperature` of `tern chat`: TERN_CHAT_TEMPERATURE) and
its own table in a `--config` file, so that one file and one environment serve all commands.
"""

from typing import Annotated

from msgspec import Meta, Struct, defstruct

from protocol.options import ServeOptions

from .bench.options import BENCHMARKS


class ConnectionOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which server is asked."""

    url: Annotated[
        str, Meta(min_length=1, description="http://host:port, https://host:port or unix:/path/of/socket")
    ] = "http://127.0.0.1:8000"
    api_key: Annotated[
        tuple[str, ...],
        Meta(description="key to send, the first if there are several", extra={"secret": True}),
    ] = ()


class ChatOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The conversation."""

    model: Annotated[str, Meta(description="one of the server's models; empty: its first")] = ""
    system: Annotated[str, Meta(description="system prompt; empty: none")] = ""
    max_tokens: (
        Annotated[
            int, Meta(ge=1, description="of each answer; left out: the server's", extra={"unit": "tokens"})
        ]
        | None
    ) = None
    temperature: Annotated[float, Meta(ge=0, description="0 is greedy; left out: the server's")] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1, description="left out: the server's")] | None = None
    seed: Annotated[int, Meta(ge=0, description="of each answer; left out: a new one each time")] | None = (
        None
    )


class CompleteOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The text to complete."""

    prompt: Annotated[str, Meta(description="the text; empty: standard input")] = ""
    model: Annotated[str, Meta(description="one of the server's models; empty: its first")] = ""
    max_tokens: Annotated[
        int, Meta(ge=1, description="of the completion, at most", extra={"unit": "tokens"})
    ] = 256
    temperature: Annotated[float, Meta(ge=0, description="0 is greedy; left out: the server's")] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1, description="left out: the server's")] | None = None
    seed: Annotated[int, Meta(ge=0, description="left out: a new one each time")] | None = None
    stop: Annotated[tuple[str, ...], Meta(description="texts at which the completion ends")] = ()
    echo: Annotated[bool, Meta(description="print the prompt before its completion")] = False


class GenerateOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prompts and answers."""

    input: Annotated[str, Meta(description="file of prompts, one JSON document a line")] = ""
    output: Annotated[
        str, Meta(description="file of answers, line for line; what it has already is kept and skipped")
    ] = ""
    overwrite: Annotated[bool, Meta(description="begin anew if the output has answers already")] = False
    url: Annotated[str, Meta(description="ask this server instead of starting one; see tern chat --help")] = (
        ""
    )
    concurrency: Annotated[
        int, Meta(ge=0, le=4096, description="requests under way at once; 0: max_num_seqs")
    ] = 0
    max_tokens: (
        Annotated[
            int,
            Meta(
                ge=1,
                description="for lines that name none; left out: the server's",
                extra={"unit": "tokens"},
            ),
        ]
        | None
    ) = None
    temperature: (
        Annotated[float, Meta(ge=0, description="for lines that name none; left out: the model's")] | None
    ) = None
    top_p: (
        Annotated[float, Meta(gt=0, le=1, description="for lines that name none; left out: the model's")]
        | None
    ) = None


class SoakOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Load and faults."""

    minutes: Annotated[float, Meta(gt=0, description="how long")] = 60
    streams: Annotated[int, Meta(ge=1, description="open at any time")] = 256
    fault_every: Annotated[float, Meta(gt=0, description="seconds between two faults")] = 20
    faults: Annotated[int, Meta(ge=0, description="end after so many; 0: any number")] = 0
    references: Annotated[int, Meta(ge=1, description="distinct questions")] = 200
    seed: (
        Annotated[int, Meta(ge=0, description="of questions, users and faults; left out: drawn, and told")]
        | None
    ) = None


class ReplayOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The recording."""

    file: Annotated[str, Meta(description="journal that tern serve --journal wrote")] = ""
    show_tokens: Annotated[
        bool,
        Meta(description="at a difference, print the request's token ids, which are somebody's prompt"),
    ] = False


class KeysOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key pair."""

    file: Annotated[str, Meta(description="the secret key; the public key goes to FILE.pub")] = ""


class ChatCommand(Struct, frozen=True, kw_only=True):
    """All of `tern chat`."""

    connection: ConnectionOptions = ConnectionOptions()
    chat: ChatOptions = ChatOptions()


class CompleteCommand(Struct, frozen=True, kw_only=True):
    """All of `tern complete`."""

    connection: ConnectionOptions = ConnectionOptions()
    complete: CompleteOptions = CompleteOptions()


class GenerateCommand(ServeOptions, frozen=True, kw_only=True):
    """All of `tern generate`: that of the server which it starts, and its own."""

    generate: GenerateOptions = GenerateOptions()


class SoakCommand(Struct, frozen=True, kw_only=True):
    """All of `tern soak`, besides what it hands on to the server."""

    soak: SoakOptions = SoakOptions()


class ReplayCommand(Struct, frozen=True, kw_only=True):
    """All of `tern replay`, besides what it shares with the server."""

    replay: ReplayOptions = ReplayOptions()


class KeysCommand(Struct, frozen=True, kw_only=True):
    """All of `tern keys`."""

    keys: KeysOptions = KeysOptions()


BENCH_COMMANDS = {
    name: defstruct(f"bench_{name}", [(f"bench_{name}", kind, kind())], frozen=True)
    for name, kind in BENCHMARKS.items()
}
"""Each benchmark's, besides what it hands on to the server."""

ROOTS: tuple[type[Struct], ...] = (
    ServeOptions,
    ChatCommand,
    CompleteCommand,
    GenerateCommand,
    SoakCommand,
    ReplayCommand,
    KeysCommand,
    *BENCH_COMMANDS.values(),
)
"""Every command whose options are declared."""
