"""`python -m eco_fast`."""

from eco_fast.cli import main

main()
