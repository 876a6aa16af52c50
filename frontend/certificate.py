"""The certificate and key of https. Knows no sockets."""

import os
import ssl

from protocol.errors import StartupError
from protocol.frontend_options import FrontendOptions

_APART = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}
"""What OpenSSL says of a key that belongs to another certificate."""


def tls_context(options: FrontendOptions) -> ssl.SSLContext | None:
    """None: http. Raises StartupError for a certificate that cannot be used."""
    cert, key = options.ssl_certfile, options.ssl_keyfile
    if not cert and not key:
        return None
    if not cert or not key:
        missing = "--ssl-certfile" if key else "--ssl-keyfile"
        raise StartupError(f"{missing} is missing: https needs a certificate and its key", hint="give both")
    for path in (cert, key):
        if not os.access(path, os.R_OK):
            what = "cannot be read" if os.path.exists(path) else "there is no such file"
            flag = "--ssl-certfile" if path == cert else "--ssl-keyfile"
            raise StartupError(f"{flag} {path}: {what}", hint="name a PEM file that the server may read")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key, _no_passphrase)
    except OSError as error:  # SSLError is one
        told = getattr(error, "reason", None)
        apart = "the key is that of another certificate"
        reason = apart if told in _APART else f"{told}" if told else "one of them is not a PEM file"
        raise StartupError(
            f"--ssl-certfile {cert} --ssl-keyfile {key}: cannot be used: {reason}",
            hint="both must be PEM files, and belong together",
        ) from None
    return context


def _no_passphrase() -> str:
    """Without this, OpenSSL asks on the terminal."""
    raise StartupError(
        "--ssl-keyfile: the key is encrypted, and nobody can be asked for its passphrase",
        hint="decrypt it with openssl pkey -in KEY -out FILE, and chmod 600 FILE",
    )
