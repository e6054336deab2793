"""What makes a shell complete verbs, flags and the names they may be. It runs no tdsm when the tab key is pressed."""

from contextlib import redirect_stdout, suppress
from io import StringIO

import tyro

from tdsm.cli.flags import NAMED
from tdsm.cli.verbs import VERBS


def completion(shell: str) -> str:
    """Return the script that a shell reads once: `eval "$(tdsm completion bash)"`.

    >>> "complete -F" in completion("bash")
    True
    """
    script = StringIO()
    with NAMED, redirect_stdout(script), suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="tdsm", args=["--tyro-print-completion", shell])
    return script.getvalue()
