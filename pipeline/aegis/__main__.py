"""`python -m aegis` is `aegis`."""

from aegis.cli import main

main()
