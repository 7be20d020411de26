"""A script that takes a terminal as its own, as a shell's command has it, and then is train.py.

`train_on_terminal.py /dev/pts/N OVERRIDES`, started as the leader of a session.
"""

import os
import sys

from laptime.cli import main

if __name__ == "__main__":
    terminal = os.open(sys.argv[1], os.O_RDWR)  # of a leader without a terminal it becomes the controlling one
    for stream in (0, 1, 2):
        os.dup2(terminal, stream)
    os.close(terminal)
    main(sys.argv[2:])
