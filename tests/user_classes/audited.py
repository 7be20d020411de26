"""A callback whose module notes whom its process asks on the network: a line in the file that ASKED names for each."""

import os
import sys
from typing import Any

from pytorch_lightning.callbacks import Callback

_EVENTS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS and "ASKED" in os.environ:
        asked = arguments[0] if event.startswith("socket.get") else arguments[1]
        with open(os.environ["ASKED"], "a") as file:  # noqa: PTH123  a hook must not run other code
            print(os.getpid(), event, repr(asked), file=file)


sys.addaudithook(_note)


class Audited(Callback):
    """Does nothing: its import is enough."""
