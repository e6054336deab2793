"""Let the reference show the examples of docstrings as code: `>>>` alone would be a quotation in Markdown."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^\S.*\n?)*)(?:\n?(?:^>>> .*\n?(?:^\S.*\n?)*))*", re.MULTILINE)


class Examples(griffe.Extension):
    """Fence what begins with `>>>`, to the next empty line that no other example follows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of whatever was read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """Put fences around the examples of a docstring.

    >>> fenced("Add one.\\n\\n>>> 1 + 1\\n2\\n\\nReturns:\\n    It.").count("```")
    2
    """
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)
