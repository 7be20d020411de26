"""`python train.py model=cnn` does what `laptime train model=cnn` does; see `python train.py --help`."""

import sys

from laptime import fast_start, starting

if __name__ == "__main__":
    fast_start.begin()
    starting.announce(sys.argv[1:])
    from laptime.cli.train import main

    main()
