"""`python -m keysmith`, where the script `keysmith` is not on the path."""

from keysmith.cli import main

main()
