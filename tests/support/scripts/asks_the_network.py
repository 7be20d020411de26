"""Connects a datagram socket to an address that doesn't exist, in this process and in a child. Nothing is sent."""

import multiprocessing
import socket


def ask(port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as connection:
        connection.connect(("10.9.8.7", port))


if __name__ == "__main__":
    ask(9)
    child = multiprocessing.get_context("fork").Process(target=ask, args=(10,))
    child.start()
    child.join()
