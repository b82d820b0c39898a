"""`python -m lcfbench.cli` is the command line."""

from lcfbench.cli import main

if __name__ == "__main__":
    main()
