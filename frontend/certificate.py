"""The certificate and key of https: whether they can be used. Knows no sockets."""

import ssl

from protocol.errors import StartupError
from protocol.options import FrontendOptions


def check_certificate(options: FrontendOptions) -> None:
    """Raises StartupError."""
    cert, key = options.ssl_certfile, options.ssl_keyfile
    if not cert and not key:
        return
    if not cert or not key:
        missing = "--ssl-certfile" if key else "--ssl-keyfile"
        raise StartupError(f"{missing} is missing: https needs a certificate and its key", hint="give both")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:  # the second is one of the first, and has its reason elsewhere
        reason = error.strerror or getattr(error, "reason", "") or str(error)
        raise StartupError(
            f"--ssl-certfile {cert} --ssl-keyfile {key}: cannot be used: {reason}",
            hint="both must be PEM files that the server may read, and belong together",
        ) from None
