"""Who may use the page: whoever has the key that the terminal shows.

Loopback alone is open to every user of a machine, and to every web page that one of them has open.
"""

from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

PARAMETER = "key"
REFUSED = "This page is for the user who started `fuse studio`: open the address that the terminal shows, with its key."
# Scripts, styles, pictures and connections of this server alone: the page itself asks nothing of any other.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'none'; object-src 'none'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """An ASGI application in front of another one.

    A first visit with `?key=` gets the key as a cookie and the address without it; after that every request and every
    socket has to bring the cookie, and comes from a page of this server where it says where from. cookie: its name.
    """

    def __init__(self, app: Any, key: str, cookie: str) -> None:
        self.app, self.key, self.cookie = app, key, cookie

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        given = query.pop(PARAMETER, [""])[-1]
        if scope["type"] == "http" and scope["method"] == "GET" and given and self._is_key(given):
            await _let_in(scope, send, f"{self.cookie}={self.key}", urlencode(query, doseq=True))
        elif self._knows(headers) and _same_origin(headers):
            await self.app(scope, receive, _with_headers(send) if scope["type"] == "http" else send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _answer(send, 403, REFUSED.encode())

    def _is_key(self, given: str) -> bool:
        return compare_digest(given.encode(), self.key.encode())

    def _knows(self, headers: dict[str, str]) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and self._is_key(found.value)


def _same_origin(headers: dict[str, str]) -> bool:
    """Cookies are sent to every port of a host, from a page of any port: only our own may ask."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


async def _let_in(scope: dict[str, Any], send: Any, cookie: str, query: str) -> None:
    place = "/" + quote(scope["path"].lstrip("/\\")) + (f"?{query}" if query else "")  # of this server, whatever it is
    more = ((b"location", place.encode()), (b"set-cookie", f"{cookie}; Path=/; HttpOnly; SameSite=Strict".encode()))
    await _answer(send, 303, b"", more)


async def _answer(send: Any, status: int, body: bytes, more: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"), *HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Any) -> Any:
    async def sends(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            known = {name.lower() for name, _ in message.get("headers", ())}
            policy = () if b"content-security-policy" in known else ((b"content-security-policy", POLICY.encode()),)
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS, *policy]}
        await send(message)

    return sends
