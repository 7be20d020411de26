"""The folder of the sockets that multiprocessing uses."""

import os
import tempfile
from multiprocessing import util


def use_short_socket_dir() -> None:
    """Let multiprocessing put its sockets into /tmp if their paths would be too long: the system allows 107 bytes.

    Python before 3.14 fails otherwise: https://github.com/python/cpython/issues/132124
    """
    temporary = os.fsencode(tempfile.gettempdir())
    if len(temporary) + len("/pymp-12345678/listener-12345678") <= 107:
        return
    tempfile.tempdir = "/tmp"
    try:
        util.get_temp_dir()  # creates the folder at the first call, and keeps it
    finally:
        tempfile.tempdir = os.fsdecode(temporary)
