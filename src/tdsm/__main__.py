"""`python -m tdsm`: the command line."""

from tdsm.cli import main

main()
