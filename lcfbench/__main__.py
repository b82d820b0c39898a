"""`python -m lcfbench` is the command line."""

from lcfbench.cli import main

if __name__ == "__main__":  # not in a worker process that a library starts
    main()
