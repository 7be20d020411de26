"""train.py with a controlling terminal, as a shell starts it.

`train_on_terminal.py /dev/pts/N OVERRIDES`, started as the leader of a session.
"""

import os
import sys

from laptime.cli import main

if __name__ == "__main__":
    terminal = os.open(sys.argv[1], os.O_RDWR)  # becomes the controlling terminal, because the session has none
    for stream in (0, 1, 2):
        os.dup2(terminal, stream)
    os.close(terminal)
    main(sys.argv[2:])
