"""`python -m lcfbench` is the command line."""

from lcfbench.cli import main

main()
