"""Where processes that start each other put their sockets."""

import os
import tempfile
from multiprocessing import util


def use_short_socket_dir() -> None:
    """Put the sockets that processes are started through where their names are not too long, as Python does from 3.14
    on: the system takes 107 bytes. https://github.com/python/cpython/issues/132124"""
    there = os.fsencode(tempfile.gettempdir())
    if len(there) + len("/pymp-12345678/listener-12345678") <= 107:
        return
    tempfile.tempdir = "/tmp"
    try:
        util.get_temp_dir()  # makes one at the first call, and stays with it
    finally:
        tempfile.tempdir = os.fsdecode(there)
