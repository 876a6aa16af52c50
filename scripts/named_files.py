"""Files that options name besides the model: are they there, readable, and what they should be?

Asked before the first process starts, by `tern serve` and by `tern doctor`: each of them would be found
wrong by some process later, after the model has been loaded beside it.
"""

from pathlib import Path

from frontend.keys import api_keys
from protocol.curve import check_options
from protocol.frontend_options import FrontendOptions
from protocol.options import ServeOptions


def check(options: ServeOptions) -> tuple[str, ...]:
    """The API keys that will open. Raises StartupError for the first file that cannot be used."""
    keys = api_keys(options.frontend)
    _check_certificate(options.frontend)
    _check_template(options.frontend.chat_template)
    check_options(options.server)
    return keys


# What reads a certificate and a template is imported for those who name one: it would stay in the
# supervisor's memory, 3 and 8 MB, for as long as the server runs.


def _check_certificate(options: FrontendOptions) -> None:
    if options.ssl_certfile or options.ssl_keyfile:
        from frontend.certificate import tls_context

        tls_context(options)


def _check_template(path: str) -> None:
    if path:
        from frontend.chat_template import ChatTemplate

        ChatTemplate.load(path, Path(), {}, {})
