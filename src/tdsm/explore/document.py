"""The page as one HTML file, its style and scripts inside, which needs nothing beside it.

A security policy lets it run and show only what is in it, by the hashes of its style and script; a page with a server
may ask that one, no other.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = ("source.js", "numbers.js", "paint.js", "save.js", "page.js")
POLICY = "default-src 'none'; img-src data: blob:; base-uri 'none'; form-action 'none'"


def document(inside: Mapping[str, Any] | None = None, contents: Mapping[str, str] | None = None) -> str:
    """Put the page together.

    Args:
        inside: What a page without a server describes itself by; None for a page that asks its server.
        contents: Base64 by name, which such a page reads its pictures from.
    """
    style, script = _asset("page.css"), "\n".join(_asset(name) for name in SCRIPTS)
    blocks = [_block("inside", "application/json", _harmless(inside))] if inside is not None else []
    blocks += [_block(name, "text/plain", text) for name, text in (contents or {}).items()]
    parts = {"POLICY": policy(has_server=inside is None), "STYLE": style, "DATA": "\n".join(blocks), "SCRIPT": script}
    page = _asset("page.html")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


def policy(*, has_server: bool) -> str:
    """Return the page's content security policy."""
    style, script = _asset("page.css"), "\n".join(_asset(name) for name in SCRIPTS)
    words = f"{POLICY}; style-src {_digest(style)}; script-src {_digest(script)}"
    return f"{words}; connect-src 'self'" if has_server else words


def _asset(name: str) -> str:
    return (files("tdsm.explore") / "page" / name).read_text(encoding="utf-8").strip("\n")


def _digest(source: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"


def _harmless(value: Mapping[str, Any]) -> str:
    """Write JSON that cannot end the block it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _block(name: str, kind: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>'
