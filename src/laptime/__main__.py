"""`python -m laptime` does what `python train.py` does, also where Laptime is installed without its checkout."""

from laptime.cli import main

main()
