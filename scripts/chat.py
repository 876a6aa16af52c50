"""`tern chat`: a conversation with a running server in the terminal. Knows only its HTTP API."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress

import msgspec
from msgspec import Struct

from .api_client import TROUBLE, ApiClient, Refusal, connect
from .command_options import ChatCommand, ChatOptions
from .flags import Command
from .terminal import DIM, Terminal, visible

HELP = """\
  /help                  this
  /system [TEXT]         set the system prompt and start anew; without a text: none
  /params [NAME=VALUE …] show or set fields of the requests: temperature=0.2 max_tokens=100 stop=["."]
                         NAME= alone takes one away
  /history               the conversation so far
  /retry                 ask the last question again
  /clear                 forget the conversation (also /reset)
  /quit, ^D              leave
  ^C                     stop the answer
"""
CHAT = Command(
    "chat", "Talk to a running server. /help lists what can be typed besides questions.", ChatCommand
)


class Message(Struct):
    role: str
    content: str


class Conversation:
    """What has been said, and with which parameters the next answer is asked for."""

    def __init__(self, client: ApiClient, model: str, options: ChatOptions, terminal: Terminal) -> None:
        self._client, self._model, self._terminal = client, model, terminal
        self._system = options.system
        names = ("max_tokens", "temperature", "top_p", "seed")
        self.params = {name: value for name in names if (value := getattr(options, name)) is not None}
        self.clear()

    def clear(self, system: str | None = None) -> None:
        """Start anew, with another system prompt if one is given."""
        self._system = self._system if system is None else system
        self.messages = [Message("system", self._system)] if self._system else []

    def ask(self, question: str) -> None:
        """What was answered joins the conversation, and a question that failed leaves it."""
        self.messages.append(Message("user", question))
        body = {"model": self._model, "messages": self.messages, "stream": True, **self.params}
        answer, finish = "", ""
        try:
            with closing(self._client.events("/v1/chat/completions", body)) as events:
                for event in events:
                    for choice in event.get("choices", ()):
                        answer += self._show(choice.get("delta", {}))
                        finish = choice.get("finish_reason") or finish
            print()
            self._tell(answer, finish)
        except KeyboardInterrupt:
            print(" (stopped)")
        except (*TROUBLE, Refusal, msgspec.DecodeError) as error:
            print(f"\n{visible(str(error))}", file=sys.stderr)
            self.messages.pop()
            return
        self.messages.append(Message("assistant", answer))

    def retry(self) -> None:
        """The last question once more, in place of its answer."""
        questions = [i for i, message in enumerate(self.messages) if message.role == "user"]
        if not questions:
            print("nothing has been asked yet")
            return
        question = self.messages[questions[-1]].content
        del self.messages[questions[-1] :]
        self.ask(question)

    def set_params(self, text: str) -> None:
        """NAME=VALUE …, where a value is JSON or a plain word; the server judges names and values."""
        for part in text.split():
            name, equals, value = part.partition("=")
            if not equals or not name:
                print(f"{part}: expected NAME=VALUE")
            elif not value:
                self.params.pop(name, None)
            else:
                try:
                    self.params[name] = msgspec.json.decode(value)
                except msgspec.DecodeError:
                    self.params[name] = value
        print(" ".join(f"{name}={_json(value)}" for name, value in self.params.items()) or "the server's own")

    def show_history(self) -> None:
        for message in self.messages:
            self._terminal.say(f"{message.role}: {message.content}\n")

    def _show(self, delta: Mapping[str, str | None]) -> str:
        """Print a piece of the answer; what the model thinks is dim, and no part of the answer."""
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if thought:
            self._terminal.say(thought, DIM)
        piece = delta.get("content") or ""
        self._terminal.say(piece)
        return piece

    def _tell(self, answer: str, finish: str) -> None:
        """Why there is no more, where that is not plain to see."""
        if finish == "length":
            limit = self.params.get("max_tokens")
            why = f"max_tokens={limit}" if limit is not None else "what the server or the context allows"
            note = f"(cut at its length: {why}; /params max_tokens=N sets another)"
        elif not answer:
            note = "(an empty answer)"
        else:
            return
        print(self._terminal.paint(sys.stdout, note, DIM))


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Raises StartupError for options that make no sense."""
    options, _ = CHAT.parse(argv, environ)
    asked = options.connection
    client, model = connect(asked.url, asked.api_key, options.chat.model)
    with suppress(ImportError):
        import readline  # noqa: F401  # line editing, where the platform has it
    print(f"{model} at {asked.url}. /help lists commands; Ctrl-C stops an answer.")
    return converse(Conversation(client, model, options.chat, Terminal(environ)))


def converse(conversation: Conversation) -> int:
    """Read, ask, print, until the end of the input."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            print()
            continue
        command, _, rest = line.partition(" ")
        match command:
            case "":
                continue
            case "/quit" | "/exit":
                return 0
            case "/help":
                print(HELP, end="")
            case "/clear" | "/reset":
                conversation.clear()
            case "/system":
                conversation.clear(rest.strip())
            case "/params":
                conversation.set_params(rest)
            case "/history":
                conversation.show_history()
            case "/retry":
                conversation.retry()
            case _ if command.startswith("/"):
                print(f"{command} is none of the commands:\n{HELP}", end="")
            case _:
                conversation.ask(line)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
