"""`python -m clawproxy` is `clawproxy`."""

from clawproxy.cli import main

main()
