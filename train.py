"""Train and measure: `python train.py [group=option] [key=value] ...`, see `python train.py --help`."""

from laptime.cli import main

if __name__ == "__main__":
    main()
