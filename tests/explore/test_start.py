import contextlib
import os
import signal
import socket
import sys
import threading
import time
import types

import pytest

from tdsm.base.errors import ResourceError
from tdsm.explore import start
from tests.explore.test_studio import random_studio
from tests.tinyrun import tdsm


@pytest.mark.parametrize("library", ["starlette", "uvicorn"])
def test_without_a_package_it_says_in_one_line_what_to_install(monkeypatch, capsys, tmp_path, library):
    for other in ("starlette", "uvicorn"):
        monkeypatch.setitem(sys.modules, other, None if other == library else types.ModuleType(other))
    assert tdsm("explore", tmp_path) == 2
    said = f'the library {library} is not installed. Run: pip install "tdsm[explore]", or "tdsm[all]" for everything.'
    assert capsys.readouterr().err == f"explore {tmp_path}: taking it up\ntdsm: {said}\n"


def test_a_port_that_is_taken_is_named():
    pytest.importorskip("starlette", reason="starlette is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port {port} cannot be opened .*; --port 0 takes a free one"):
            start.explore(random_studio(count=1), port, print, opens_browser=False)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["raised", "ignored"])
def test_an_interrupt_ends_it_though_a_browser_is_still_there(capsys, handler):
    pytest.importorskip("starlette", reason="starlette is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    said = []

    def interrupt():
        while not said:
            time.sleep(0.01)
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as browser:
                browser.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert browser.recv(100).startswith(b"HTTP/1.1 421")
                os.kill(os.getpid(), signal.SIGINT)
                return done.wait(20)
            time.sleep(0.01)

    done = threading.Event()
    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, handler)
    thread.start()
    try:
        start.explore(random_studio(count=1), port, said.append, opens_browser=False)
    finally:
        signal.signal(signal.SIGINT, before)
        done.set()
        thread.join()
    assert said[-1] == "stopped."
    assert capsys.readouterr().out.startswith(f"http://127.0.0.1:{port}/?token=")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 4, "no field found"),
        (["nowhere", "--port", "70000"], 2, "port is 70000: expected at most 65535"),
        (["nowhere", "--methods", "sollo"], 2, "solo"),
        (["nowhere", "--images", "0"], 2, "images is 0: expected at least 1"),
    ],
)
def test_wrong_input_gets_a_line(capsys, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    assert tdsm("explore", *arguments) == code
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
