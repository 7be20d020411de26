"""A callback whose module logs its process's use of the network to the file that the variable ASKED names."""

import os
import sys
from typing import Any

from pytorch_lightning.callbacks import Callback

_EVENTS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


def _log(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS and "ASKED" in os.environ:
        address = arguments[0] if event.startswith("socket.get") else arguments[1]
        with open(os.environ["ASKED"], "a") as file:  # noqa: PTH123  an audit hook must not call pathlib
            print(os.getpid(), event, repr(address), file=file)


sys.addaudithook(_log)


class Audited(Callback):
    """Does nothing. Importing the module installs the hook."""
