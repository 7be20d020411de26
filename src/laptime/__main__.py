"""`python -m laptime` does what the command `laptime` does."""

from laptime.cli import main

if __name__ == "__main__":
    main()
