"""What the server gives to whom: only to this machine's page, only what numbers name, only so much."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from tests.explore.test_studio import picture, random_studio

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from tdsm.explore.server import LONGEST_PATH, MOST_PICTURE, MOST_QUESTION, listen, serve

TOKEN = "the-token-of-this-start"


class Site:
    """A server in a thread, and ways to ask it."""

    def __init__(self, studio, token=TOKEN):
        self.studio, self.token, self.socket = studio, token, listen()
        self.port = self.socket.getsockname()[1]
        self.server = serve(studio, self.socket, token)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self):
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()

    def ask(self, path, body=None, method=None, **headers):
        """Return status, headers and content; a header of None is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Host": f"127.0.0.1:{self.port}", "Cookie": f"tdsm-explore-{self.port}={self.token}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            connection.send(body or b"")
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def numbers(self, path, question=None):
        """Return a header and its arrays."""
        status, _, content = self.ask(path, None if question is None else json.dumps(question).encode())
        assert status == 200, content
        length = int.from_bytes(content[:4], "little")
        header, offset = json.loads(content[4 : 4 + length]), 4 + length
        for name, shape in header["arrays"]:
            count = int(np.prod(shape))
            header[name] = torch.from_numpy(np.frombuffer(content, "<f4", count, offset).reshape(shape).copy())
            offset += 4 * count
        assert offset == len(content)
        return header


@pytest.fixture(scope="module")
def site():
    torch.manual_seed(0)
    site = Site(random_studio())
    yield site
    site.close()


# ---------------------------------------------------------------- who is let in


def test_the_address_with_the_token_gives_a_cookie_and_leaves_no_trace_of_it(site):
    status, headers, _ = site.ask(f"/?token={TOKEN}", Cookie=None)
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert cookie.startswith(f"tdsm-explore-{site.port}={TOKEN};")
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (403, {"Cookie": None}),
        (403, {"Cookie": "tdsm-explore-1=the-token-of-this-start"}),
        (421, {"Host": "evil.example"}),
        (421, {"Host": "127.0.0.1"}),
        (421, {"Host": "127.0.0.1:1"}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (403, {"Sec_Fetch_Site": "cross-site"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/", "/about", "/images/0/0", "/nothing"])
def test_strangers_get_nothing(site, path, status, headers):
    refused = site.ask(path, **headers)
    assert refused[0] == status
    assert refused[1]["content-security-policy"].startswith("default-src 'none'")
    assert len(refused[2]) < 100


def test_a_request_without_a_host_is_none(site):
    assert site.ask("/about", Host=None)[0] == 400


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", "%00", "ü"])
def test_a_wrong_token_gives_no_cookie(site, token):
    status, headers, _ = site.ask(f"/?token={quote(token)}", Cookie=None)
    assert (status, headers["set-cookie"]) == (403, None)


def test_the_own_page_is_let_in_by_both_names(site):
    for host in ("127.0.0.1", "localhost"):
        assert site.ask("/about", Host=f"{host}:{site.port}", Origin=f"http://{host}:{site.port}")[0] == 200


def test_it_listens_to_this_machine_alone(site):
    assert site.socket.getsockname()[0] == "127.0.0.1"


def test_every_answer_says_that_nothing_else_may_be_loaded(site):
    for path in ("/", "/about", "/nothing", "/images/0/9999"):
        headers = site.ask(path)[1]
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert policy["script-src"].startswith("'sha256-")
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert headers["server"] is None


def test_another_protocol_is_closed(site):
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    request += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        connection.sendall(request.encode())
        assert connection.recv(100).startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


# ---------------------------------------------------------------- what is given


def test_what_is_given_is_what_the_studio_says(site):
    view, expected = site.numbers("/views/0/5/1/12"), site.studio.view(0, 5, 1, 12)
    assert torch.equal(view["components"], expected.components[0])
    assert torch.equal(view["base"], expected.base[0])
    assert view["completeness_error"] == pytest.approx(expected.completeness_error.item())
    assert torch.equal(site.numbers("/images/0/5")["image"], site.studio.image(0, 5)[0].movedim(0, -1))
    slots = [0, -1, 1, 0, -1]
    question = {"sources": [[0, 5], [0, 6]], "slots": slots, "side": 12, "head": -1}
    composed = site.numbers("/compositions", question)["picture"]
    assert torch.equal(composed, site.studio.compose([(0, 5), (0, 6)], slots, 12))
    assert site.numbers("/thumbnails", {"shelf": 0, "rows": [1, 2]})["images"].shape == (2, 6, 8, 3)


def test_a_dropped_picture_gets_a_place(site):
    status, _, content = site.ask("/pictures", picture())
    place = json.loads(content)
    assert (status, place["shelf"]) == (200, 1)
    assert site.numbers(f"/images/1/{place['row']}")["image"].shape == (6, 6, 3)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc/passwd", "/page.css", "/page/page.js"),
        *("/images/0/..%2f0", "/images/0/%2e%2e", "/images/-1/0", "/images/0/1.5", "/images/0/x", "/images/0/0/"),
        *("/images/0/%00", "//etc/passwd", "/static/../server.py", "/file:///etc/passwd", "/views/0/0/solo/12"),
    ],
)
def test_addresses_hold_whole_numbers_and_no_paths(site, path):
    status, _, content = site.ask(path)
    assert status in (400, 404)
    assert b"root:" not in content
    assert len(content) < 300


@pytest.mark.parametrize("path", [f"/images/0/{10**180}", f"/images/0/{'9' * 5000}", "/" + "a" * (LONGEST_PATH + 1)])
def test_addresses_are_short(site, path):
    assert site.ask(path)[0] in (400, 414)


def test_huge_numbers_are_not_there(site):
    status, _, content = site.ask(f"/images/0/{10**100}")
    assert status == 400
    assert "is not there" in json.loads(content)["error"]


def test_other_methods_are_refused(site):
    assert {site.ask("/about", method=method)[0] for method in ("POST", "PUT", "DELETE")} == {405}
    assert site.ask("/pictures")[0] == 405


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/thumbnails", b""),
        ("/thumbnails", b"[1"),
        ("/thumbnails", b"[" * 60_000),
        ("/thumbnails", b'{"shelf": 0}'),
        ("/thumbnails", b'{"shelf": 0, "rows": []}'),
        ("/thumbnails", b'{"shelf": true, "rows": [1]}'),
        ("/thumbnails", b'{"shelf": 0, "rows": ["../../etc/passwd"]}'),
        ("/thumbnails", b'{"shelf": 0, "rows": [1e9]}'),
        ("/thumbnails", b'{"shelf": 0, "rows": [99999999999999999999]}'),
        ("/thumbnails", json.dumps({"shelf": 0, "rows": [0] * 65}).encode()),
        ("/compositions", b'{"sources": [[0, 0]], "slots": [0], "side": 12, "head": -1}'),
        ("/compositions", b'{"sources": [[0]], "slots": [0, 0, 0, 0, 0], "side": 12, "head": -1}'),
        ("/compositions", b'{"sources": ["00"], "slots": [0, 0, 0, 0, 0], "side": 12, "head": -1}'),
        ("/compositions", b'{"sources": [[0, 0]], "slots": [0, 0, 0, 0, 0], "side": 100000, "head": -1}'),
        ("/compositions", b'{"sources": [[0, 0], [0, 0], [0, 0]], "slots": [0, 0, 0, 0, 0], "side": 12, "head": -1}'),
        ("/pictures", b""),
        ("/pictures", b"<svg onload=alert(1)>"),
        ("/pictures", b"%!PS-Adobe-3.0 EPSF-3.0"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_questions_that_make_no_sense_get_a_line(site, path, body):
    status, headers, content = site.ask(path, body)
    assert (status, headers["content-type"]) == (400, "application/json")
    words = json.loads(content)["error"]
    assert words
    assert "\n" not in words
    assert "Traceback" not in words


@pytest.mark.parametrize(("path", "most"), [("/pictures", MOST_PICTURE), ("/compositions", MOST_QUESTION)])
def test_more_than_is_taken_is_refused(site, path, most):
    status, _, content = site.ask(path, b" " * (most + 1))
    assert status == 413
    assert json.loads(content)["error"] == f"more than {most >> 10} KiB were sent"


def bomb():
    """A picture of few bytes and too many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_of_too_many_pixels_is_refused(site):
    content = bomb()
    assert len(content) < 2**20
    status, _, said = site.ask("/pictures", content)
    assert status == 400
    assert "pixels" in json.loads(said)["error"]


def test_a_picture_that_was_cut_off_is_named(site):
    content = picture(200)
    status, _, said = site.ask("/pictures", content[: len(content) // 2])
    assert status == 400
    assert "\n" not in json.loads(said)["error"]


def test_many_who_ask_at_once_are_all_answered(site):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda row: site.ask(f"/views/0/{row}/1/6"), range(48)))
    assert {status for status, _, _ in answers} == {200}
    assert answers[5][2] == site.ask("/views/0/5/1/6")[2]


def test_who_goes_away_before_the_answer_holds_nobody_up(site):
    cookie = f"Cookie: tdsm-explore-{site.port}={TOKEN}\r\n"
    for body in (b"{", b"{" * 90):  # all that was announced is 90 bytes
        with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
            head = f"POST /compositions HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\n{cookie}Content-Length: 90\r\n\r\n"
            connection.sendall(head.encode() + body)
    assert site.ask("/about")[0] == 200
