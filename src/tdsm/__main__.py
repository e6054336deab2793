"""The command `tdsm`, and `python -m tdsm`."""

import os
import sys

from tdsm.base.extras import missing_words


def main() -> None:
    """Run the command line; say in one line what is missing where only the core is installed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else threads spin while they wait: 10 times slower on busy cores
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
