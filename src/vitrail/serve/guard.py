"""Who may ask: the hosts and origins that are ours, a token if there is one, and bodies of a bounded size.

Any page in a browser on this machine can send requests to a port of it, and with a name that it points here (DNS
rebinding) even read the answers. So a request must name one of our hosts, and a request that a browser made for a page
must be of our own page. Nobody may show the page in a frame of theirs.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import parse_qs

from attrs import field, frozen
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEAST_TOKEN = 16  # characters
HTTP_PORT = 80  # browsers leave it out
MOST_BYTES = 2**16  # of a request's body
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone: ``localhost`` or an address of the loopback network."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def own_hosts(host: str, port: int) -> frozenset[str]:
    """Return the ``Host`` headers of requests that are meant for a server on a loopback address."""
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host}
    shown = {f"{name}:{port}" for name in names}
    return frozenset(shown | names if port == HTTP_PORT else shown)


class TooLongError(Exception):
    """The body of a request is longer than ``MOST_BYTES``."""


@frozen
class Guard:
    """An ASGI application that lets through what our own page asks for.

    Attributes:
        app: The application behind it.
        hosts: ``Host`` headers that are ours; None for any, where a token guards instead.
        token: What a visitor must know; None for nothing.
    """

    app: ASGIApp
    hosts: frozenset[str] | None
    token: str | None = field(repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        answer = self._refusal(scope, headers) or self._token_answer(scope, headers)
        target: ASGIApp = self.app if answer is None else answer
        await target(scope, _bounded(receive), _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Response | None:
        """Refuse what a stranger's page asks for, or what asks under another name."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and host not in self.hosts:
            own = " or ".join(sorted(f"http://{each}/" for each in self.hosts))
            return PlainTextResponse(
                f"This address is not the page's own: open {own}; a tunnel must begin at the same port.\n", 403
            )
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return PlainTextResponse("Another site's page may not ask this one.\n", 403)
        site, opens = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode") == "navigate"
        if site not in ("same-origin", "none") and not (opens and scope["method"] == "GET" and scope["path"] == "/"):
            return PlainTextResponse("Another site's page may not ask this one.\n", 403)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Only GET and POST are served.\n", 405)
        if scope["method"] == "POST" and headers.get("content-type", "").partition(";")[0] != "application/json":
            return PlainTextResponse("Only JSON is taken.\n", 415)
        if headers.get("content-length", "0").isdecimal() and int(headers.get("content-length", "0")) > MOST_BYTES:
            return PlainTextResponse(f"More than {MOST_BYTES} bytes are not read.\n", 413)
        return None

    def _token_answer(self, scope: Scope, headers: dict[str, str]) -> Response | None:
        """Refuse who does not know the token; who has it in the address gets a cookie instead."""
        if self.token is None:
            return None
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["path"] == "/" and self._knows(asked):
            answer = RedirectResponse("./", 303)
            answer.set_cookie(_cookie_name(headers), self.token, httponly=True, samesite="lax")  # sent after a link
            return answer
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        kept = cookie_parser(headers.get("cookie", "")).get(_cookie_name(headers), "")
        if self._knows([bearer, kept]):
            return None
        return PlainTextResponse("Open the address that the terminal shows, with its token.\n", 401)

    def _knows(self, given: Iterable[str]) -> bool:
        assert self.token is not None
        return any(hmac.compare_digest(each.encode(), self.token.encode()) for each in given)


def _cookie_name(headers: dict[str, str]) -> str:
    """Return a name with the port of the address that the browser opened: it has one cookie jar for all ports."""
    port = headers.get("host", "").rpartition(":")[2]
    return f"vitrail-token-{port if port.isdecimal() else HTTP_PORT}"


def _bounded(receive: Receive) -> Receive:
    """Return a ``receive`` that raises where a body grows too long, whatever its head said."""
    count = 0

    async def bounded() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > MOST_BYTES:
            raise TooLongError
        return message

    return bounded


def _with_headers(send: Send) -> Send:
    """Return a ``send`` that adds ``HEADERS`` to every answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            kept = [pair for pair in message.get("headers", []) if pair[0].decode().lower() not in HEADERS]
            message = {**message, "headers": [*kept, *own]}
        await send(message)

    return sending
