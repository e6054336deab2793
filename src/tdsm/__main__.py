"""`python -m tdsm`: the command line."""

from tdsm.cli.main import main

main()
