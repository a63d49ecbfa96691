"""`python -m rlvr` is `rlvr`."""

from rlvr.cli.main import main

main()
