"""Serve the page until it is interrupted."""

import webbrowser
from contextlib import suppress
from importlib import import_module

from tdsm.base.errors import ResourceError
from tdsm.explore.studio import Studio
from tdsm.pipeline.link import Say

NEEDED = ("starlette", "uvicorn")


def require_server() -> None:
    """Import what serves a page before anything slow is done; a library that is missing is named with its extra."""
    for name in NEEDED:
        import_module(name)


def explore(studio: Studio, port: int, say: Say, *, opens_browser: bool) -> None:
    """Serve the page on this machine, print its address, and return when it is interrupted.

    Raises:
        ResourceError: If the port cannot be opened.
    """
    from tdsm.explore.server import listen, new_token, serve

    try:
        opened = listen(port)
    except OSError as error:
        raise ResourceError(
            f"explore: port {port} cannot be opened ({error.strerror}); --port 0 takes a free one."
        ) from None
    token = new_token()
    address = f"http://127.0.0.1:{opened.getsockname()[1]}/?token={token}"
    studio.warm_up()
    print(address, flush=True)
    say("Open this address in a browser on this machine. Ctrl-C stops.")
    if opens_browser:
        webbrowser.open(address)
    try:
        with suppress(KeyboardInterrupt):  # raised once more after the last answer, where nothing else takes interrupts
            serve(studio, opened, token).run(sockets=[opened])
        say("stopped.")
    finally:
        opened.close()
