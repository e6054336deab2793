"""The page and its answers, given to the one who started it, on this machine alone.

Every request must name this host and port and carry the token of this start: in the address once, then in a cookie.
Addresses hold whole numbers only, which are looked up in memory; none of them reaches the file system. What is sent
here is bounded in bytes, pictures in pixels too by the decoder.
"""

import json
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tdsm.base.errors import TdsmError
from tdsm.explore.document import document, policy
from tdsm.explore.studio import Studio
from tdsm.explore.wire import pack

MOST_QUESTION, MOST_PICTURE = 2**16, 2**24  # bytes
LONGEST_PATH, MOST_THUMBNAILS = 200, 64
HEADERS = {
    "content-security-policy": policy(has_server=True) + "; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class TooLarge(Exception):
    """More was sent than is taken."""


def listen(port: int = 0) -> socket.socket:
    """Open a socket on the loopback address; port 0 takes a free one."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(("127.0.0.1", port))
    return opened


def serve(studio: Studio, opened: socket.socket, token: str) -> Any:
    """Return a uvicorn server of the page; `run(sockets=[opened])` serves until it is interrupted."""
    import uvicorn

    application = guarded(studio, opened.getsockname()[1], token)
    options: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "limit_concurrency": 64,
        "timeout_graceful_shutdown": 2,  # seconds that an answer may still take when it is interrupted
    }
    return uvicorn.Server(uvicorn.Config(application, lifespan="off", ws="none", http="h11", **options))


def new_token() -> str:
    """Draw the token of a start."""
    return secrets.token_urlsafe(32)


def guarded(studio: Studio, port: int, token: str) -> ASGIApp:
    """Return the page's application behind its guard."""
    return Guard(application(studio), port, token)


class Guard:
    """Let nobody in but who holds the token and names this host; set the headers of every answer."""

    def __init__(self, inner: ASGIApp, port: int, token: str):
        self.inner, self.token, self.cookie = inner, token, f"tdsm-explore-{port}"
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, hand over the token as a cookie, or pass on."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(Request(scope))

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await (refusal or self.inner)(scope, receive, send_on)

    def _refusal(self, request: Request) -> Response | None:
        headers, path = request.headers, request.url.path
        if headers.getlist("host") not in [[host] for host in self.hosts]:
            return PlainTextResponse("This page answers under its own address only.", 421)
        if not _is_own(headers, self.hosts):
            return PlainTextResponse("Another page may not ask this one.", 403)
        if len(request.scope.get("raw_path", b"")) > LONGEST_PATH:
            return PlainTextResponse("The address is too long.", 414)
        if path == "/" and self._is_token(request.query_params.get("token")):
            entered = RedirectResponse("/", 303)
            entered.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return entered
        if not self._is_token(request.cookies.get(self.cookie)):
            return PlainTextResponse(
                "Open the address that tdsm explore printed: it holds the token of this start.", 403
            )
        return None

    def _is_token(self, given: str | None) -> bool:
        return given is not None and secrets.compare_digest(given.encode("utf-8", "replace"), self.token.encode())


def _is_own(headers: Headers, hosts: set[str]) -> bool:
    """Whether a request does not come from another page."""
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    return (origin is None or origin in {f"http://{host}" for host in hosts}) and site in ("none", "same-origin")


def application(studio: Studio) -> Starlette:
    """Return the answers to the page's questions, one at a time."""
    page, turn = document(), threading.Lock()
    Answer = Callable[..., Response]

    def asked(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """Answer from the numbers of the address, in a thread."""

        def work(numbers: dict[str, int]) -> Response:
            with turn:
                return answer(**numbers)

        async def endpoint(request: Request) -> Response:
            return await _or_reason(run_in_threadpool(work, request.path_params))

        return endpoint

    def told(answer: Answer, most: int) -> Callable[[Request], Awaitable[Response]]:
        """Answer from what is sent, in a thread."""

        def work(content: bytes) -> Response:
            with turn:
                return answer(content)

        async def endpoint(request: Request) -> Response:
            try:
                content = await _body(request, most)
            except TooLarge:
                return JSONResponse({"error": f"more than {most >> 10} KiB were sent"}, 413)
            return await _or_reason(run_in_threadpool(work, content))

        return endpoint

    answers = Answers(studio)
    image = "{shelf:int}/{row:int}"
    page_and_answers = Starlette(
        routes=[
            Route("/", lambda _: HTMLResponse(page)),
            Route("/about", asked(answers.about)),
            Route("/shelves/{shelf:int}", asked(answers.shelf)),
            Route("/faithfulness/{shelf:int}", asked(answers.faithfulness)),
            Route(f"/images/{image}", asked(answers.image)),
            Route(f"/views/{image}/{{method:int}}/{{side:int}}", asked(answers.view)),
            Route(f"/falls/{image}/{{head:int}}", asked(answers.falls)),
            Route("/thumbnails", told(answers.thumbnails, MOST_QUESTION), methods=["POST"]),
            Route("/compositions", told(answers.composition, MOST_QUESTION), methods=["POST"]),
            Route("/pictures", told(answers.picture, MOST_PICTURE), methods=["POST"]),
        ],
        exception_handlers={404: lambda *_: PlainTextResponse("There is nothing here.", 404)},
    )
    page_and_answers.router.redirect_slashes = False
    return page_and_answers


class Answers:
    """What the studio says, as responses."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def about(self) -> Response:
        """Describe what there is."""
        return JSONResponse(self.studio.about())

    def shelf(self, shelf: int) -> Response:
        """List the images of a shelf."""
        return JSONResponse(self.studio.listing(shelf))

    def faithfulness(self, shelf: int) -> Response:
        """Say how well some images are reconstructed."""
        return JSONResponse(self.studio.faithfulness(shelf))

    def image(self, shelf: int, row: int) -> Response:
        """Give an image as it is encoded."""
        return _packed({}, image=self.studio.image(shelf, row)[0].movedim(0, -1))

    def view(self, shelf: int, row: int, method: int, side: int) -> Response:
        """Give a decomposition of an image."""
        view = self.studio.view(shelf, row, method, side)
        facts = {"method": view.method, "completeness_error": view.completeness_error.item()}
        arrays = {"base": view.base[0], "reconstruction": view.reconstruction[0], "components": view.components[0]}
        return _packed(facts, **arrays)

    def falls(self, shelf: int, row: int, head: int) -> Response:
        """Say what a head makes of an image, and of its tokens."""
        falls = self.studio.falls(shelf, row, head)
        if falls is not None:
            return _packed({"adds_up": falls.adds_up}, scores=falls.scores, blank=falls.blank, by_token=falls.by_token)
        return _packed({"adds_up": False}, scores=self.studio.whole_scores(shelf, row, head))

    def thumbnails(self, content: bytes) -> Response:
        """Give small pictures of images: {"shelf": 0, "rows": [3, 4]}."""
        asked = _question(content, {"shelf": int, "rows": list})
        rows = _whole_numbers(asked["rows"])
        if not 1 <= len(rows) <= MOST_THUMBNAILS:
            raise ValueError(f"expected 1 to {MOST_THUMBNAILS} rows")
        small = self.studio.thumbnails(asked["shelf"], rows)
        return _packed({}, images=small)

    def composition(self, content: bytes) -> Response:
        """Decode tokens of some images together: {"sources": [[0, 3]], "slots": [0, -1, …], "side": 32, "head": 1}."""
        asked = _question(content, {"sources": list, "slots": list, "side": int, "head": int})
        if not 1 <= len(asked["sources"]) <= 2:
            raise ValueError("expected one or two sources")
        sources, slots = [_pair(source) for source in asked["sources"]], _whole_numbers(asked["slots"])
        arrays = {"picture": self.studio.compose(sources, slots, asked["side"])}
        scores = self.studio.scores(asked["head"], sources, slots) if asked["head"] >= 0 else None
        return _packed({}, **arrays, **({} if scores is None else {"scores": scores}))

    def picture(self, content: bytes) -> Response:
        """Take in a dropped picture."""
        return JSONResponse({"shelf": len(self.studio.shelves), "row": self.studio.drop(content)})


async def _body(request: Request, most: int) -> bytes:
    """Read what is sent; stop where it is more than may be."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLarge
        parts.append(part)
    return b"".join(parts)


async def _or_reason(answer: Awaitable[Response]) -> Response:
    """Say why a question cannot be answered, in one line."""
    try:
        return await answer
    except (TdsmError, ValueError) as error:
        return JSONResponse({"error": str(error)}, 400)


def _packed(facts: dict[str, Any], **arrays: Any) -> Response:
    return Response(pack(facts, arrays), media_type="application/octet-stream")


def _question(content: bytes, kinds: dict[str, type]) -> dict[str, Any]:
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("what was sent is no JSON") from None
    if not isinstance(asked, dict) or asked.keys() != kinds.keys():
        raise ValueError(f"expected {', '.join(kinds)}")
    if wrong := [name for name, kind in kinds.items() if type(asked[name]) is not kind]:
        raise ValueError(f"{', '.join(wrong)}: of a wrong kind")
    return asked


def _pair(value: Any) -> tuple[int, int]:
    shelf, row = _whole_numbers(value if isinstance(value, list) and len(value) == 2 else [None])
    return shelf, row


def _whole_numbers(values: list) -> list[int]:
    if any(type(value) is not int or abs(value) >= 2**31 for value in values):
        raise ValueError("expected whole numbers")
    return values
