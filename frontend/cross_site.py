"""CrossSite: refuses what a page of another site makes a browser send.

A browser lets every page send simple requests anywhere. The page could not read the answers, but it could
make a server without keys work, or fill its queue. Browsers say where a request comes from: in Sec-Fetch-Site
(W3C Fetch Metadata) to servers on this machine or with https, and to all others in Origin (RFC 6454), which
then has to name the host that the request went to. Other clients send neither. Reading changes nothing here,
so it is allowed.
"""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import RequestError

OWN = (b"same-origin", b"none")
"""`none`: the user, not a page."""
READING = ("GET", "HEAD", "OPTIONS")


class CrossSiteRequest(RequestError):
    """A page of another origin sent it."""

    code = "cross_site_request"
    status = 403


class CrossSite:
    """Lets pass what comes from `origins`, as it has been allowed to read the answers, too."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in READING:
            headers = dict(scope["headers"])
            site = headers.get(b"sec-fetch-site")
            origin = headers.get(b"origin", b"").decode("latin-1")
            if site is None and origin:
                host = headers.get(b"host", b"").decode("latin-1")
                own = origin.partition("://")[2].lower() == host.lower()
            else:
                own = site is None or site in OWN
            if not own and not {"*", origin} & set(self._origins):
                page = f"a page of {origin or 'another origin'}"
                raise CrossSiteRequest(f"{page} may not use this server; --allowed-origins lets it")
        await self._app(scope, receive, send)
