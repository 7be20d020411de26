"""`python train.py model=cnn` does what `laptime train model=cnn` does; see `python train.py --help`."""

from laptime import fast_start

if __name__ == "__main__":
    fast_start.begin()
    from laptime.cli.train import main

    main()
