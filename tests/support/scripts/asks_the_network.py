"""Asks for a machine that there isn't, in this process and in a child of it; nothing is sent."""

import multiprocessing
import socket


def ask(port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as asking:
        asking.connect(("10.9.8.7", port))


if __name__ == "__main__":
    ask(9)
    child = multiprocessing.get_context("fork").Process(target=ask, args=(10,))
    child.start()
    child.join()
