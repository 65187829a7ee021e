"""`python -m fusion` is `fusion`."""

from fusion.cli import main

main()
