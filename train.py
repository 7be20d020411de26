"""`python train.py model=cnn` does what `laptime train model=cnn` does; see `python train.py --help`."""

from laptime.cli.train import main

if __name__ == "__main__":
    main()
