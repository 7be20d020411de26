"""An audit hook that logs a process's use of the network to the file that the variable ASKED names."""

import os
from pathlib import Path
from typing import Any

EVENTS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


def note_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in EVENTS:
        address = arguments[0] if event.startswith("socket.get") else arguments[1]
        with Path(os.environ["ASKED"]).open("a") as file:
            print(event, repr(address), file=file)
