"""The command `tdsm`, and `python -m tdsm`."""

import os
import sys

from tdsm.base.extras import missing_words


def main() -> None:
    """Run the command line; say in one line what is missing where only the core is installed."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that spin while they wait stop all others on busy cores
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would read every installed package's metadata
    try:
        from tdsm.cli.main import main as run
    except ModuleNotFoundError as error:
        if (words := missing_words(error)) is None:
            raise
        sys.exit(f"tdsm: {words}")
    run()


if __name__ == "__main__":
    main()
