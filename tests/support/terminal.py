"""A pseudo-terminal for commands: read what they show, and type keys."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from types import TracebackType

from tests.support.processes import DEADLINE_S


class Terminal:
    """A pseudo-terminal, and the text that was written to it.

    Attributes:
        command_fd: the file descriptor for the command's streams.
        path: the device, for a process that makes it its controlling terminal.
    """

    def __init__(self, num_columns: int = 120) -> None:
        self._test_fd, self.command_fd = pty.openpty()
        self.path = os.ttyname(self.command_fd)
        fcntl.ioctl(self.command_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, num_columns, 0, 0))
        self._content = b""
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Terminal":
        self._reader.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.command_fd)
        self._reader.join(DEADLINE_S)
        os.close(self._test_fd)

    def _read(self) -> None:
        while True:
            try:
                self._content += os.read(self._test_fd, 65536)
            except OSError:  # all processes have closed the terminal
                return

    def type(self, keys: bytes) -> None:
        """Type keys; b"\\x03" is Ctrl-C."""
        os.write(self._test_fd, keys)

    @property
    def text(self) -> str:
        """The shown text, without escape sequences for colors and the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._content.decode(errors="replace"))
