"""`python train.py model=cnn` does what `laptime train model=cnn` does; see `python train.py --help`."""

import sys

from laptime.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
