"""A pseudo-terminal: what a command shows on it, and what somebody types."""

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
    """A pseudo-terminal, and what was written to it so far.

    Attributes:
        theirs: the file descriptor for the command's streams.
        path: the device, for a process that makes it its own terminal.
    """

    def __init__(self, num_columns: int = 120) -> None:
        self._ours, self.theirs = pty.openpty()
        self.path = os.ttyname(self.theirs)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, num_columns, 0, 0))
        self._content = b""
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Terminal":
        self._reader.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.theirs)
        self._reader.join(DEADLINE_S)
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                self._content += os.read(self._ours, 65536)
            except OSError:  # nobody has it open any more
                return

    def type(self, keys: bytes) -> None:
        """Type keys; b"\\x03" is Ctrl-C."""
        os.write(self._ours, keys)

    @property
    def text(self) -> str:
        """What is shown, without colors and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._content.decode(errors="replace"))
