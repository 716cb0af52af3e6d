"""`python -m launcher`: the `dolphin` command where its script is not on the PATH."""

from launcher.cli import main

if __name__ == "__main__":
    main()
