"""`tern complete`: one prompt, its completion on standard output as it comes. Knows only the HTTP API."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

import msgspec

from protocol.errors import StartupError

from .api_client import TROUBLE, Refusal, connect
from .command_options import CompleteCommand
from .flags import Command
from .terminal import Terminal, visible

COMPLETE = Command("complete", "Complete a text with a running server.", CompleteCommand, positional="prompt")


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0: complete; 1: it broke off; 130 after Ctrl-C. Raises StartupError."""
    options, _ = COMPLETE.parse(argv, environ)
    asked, own = options.connection, options.complete
    prompt = own.prompt or sys.stdin.read()
    if not prompt:
        raise StartupError("there is nothing to complete", hint="tern complete 'Once upon a time'")
    client, model = connect(asked.url, asked.api_key, own.model)
    given = {
        "max_tokens": own.max_tokens,
        "temperature": own.temperature,
        "top_p": own.top_p,
        "seed": own.seed,
        "stop": list(own.stop) or None,
    }
    body = {"model": model, "prompt": prompt, "stream": True}
    body |= {name: value for name, value in given.items() if value is not None}
    terminal, finish = Terminal(environ), ""
    if own.echo:
        terminal.say(prompt)
    try:
        with closing(client.events("/v1/completions", body)) as events:
            for event in events:
                for choice in event.get("choices", ()):
                    terminal.say(choice.get("text") or "")
                    finish = choice.get("finish_reason") or finish
        print(flush=True)
    except (*TROUBLE, Refusal, msgspec.DecodeError) as error:
        sys.stdout.flush()
        print(f"\ntern: error: {visible(str(error))}", file=sys.stderr)
        return 1
    if finish == "length":
        limit = f"--max-tokens {own.max_tokens}, or the model's context"
        print(f"tern: cut at its length: {limit}", file=sys.stderr)
    return 0
