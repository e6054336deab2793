"""Serve the page until it is interrupted."""

import webbrowser
from importlib.util import find_spec

from tdsm.base.errors import ResourceError
from tdsm.explore.studio import Studio
from tdsm.pipeline.link import Say

NEEDED = ("starlette", "uvicorn")


def require_server() -> None:
    """Refuse to start where the packages that serve a page are not installed.

    Raises:
        ResourceError: It says how to install them.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ResourceError(f'explore: {" and ".join(missing)} not installed. Install: pip install "tdsm[explore]"')


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
        serve(studio, opened, token).run(sockets=[opened])
    except KeyboardInterrupt:
        say("stopped.")
    finally:
        opened.close()
