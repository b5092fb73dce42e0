"""`python -m mixzoo`: the same as the `mixzoo` command."""

from .zoo.cli import main

if __name__ == "__main__":
    main()
