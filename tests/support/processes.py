"""Start commands in tests. They are real processes, most of them forked from one that has already imported torch."""

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from tests.support.warm_server import LENGTH

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "train.py"
# Time limit for a command or a condition, in seconds: far more than a busy machine needs.
DEADLINE_S = 240.0
CAN_FORK = sys.platform == "linux"


class Process:
    """A command forked from the warm server, with the interface of subprocess.Popen with text streams.

    Attributes:
        pid: its process id. Its parent is the warm server, not pytest.
        returncode: None until `poll`, `wait` or `communicate` has noticed its end; negative for a signal.
        stdout, stderr: its streams as text, if they are pipes.
    """

    def __init__(self, argv: list[str], stdout: Any, stderr: Any, **request: Any) -> None:
        self.args = argv
        self.returncode: int | None = None
        self._answers, server_end = socket.socketpair()
        ends: list[int] = []  # the server's ends, closed in this process after they were sent
        self.stdout = _open_stream(stdout, ends)
        self.stderr = _open_stream(stderr, ends) if stderr != subprocess.STDOUT else None
        if stderr == subprocess.STDOUT:
            ends.append(os.dup(ends[0]))
        ends.insert(0, os.open(os.devnull, os.O_RDONLY))
        content = pickle.dumps({"argv": argv, **request})
        with _lock:
            control = _server()
            socket.send_fds(control, [LENGTH.pack(len(content))], [*ends, server_end.fileno()])
            control.sendall(content)
        for end in ends:
            os.close(end)
        server_end.close()
        answer = self._receive(DEADLINE_S)
        if answer is None:
            raise RuntimeError(f"the warm server has not answered within {DEADLINE_S} s")
        self.pid: int = struct.unpack("!q", answer)[0]

    def _receive(self, timeout: float | None) -> bytes | None:
        if not select.select([self._answers], [], [], timeout)[0]:
            return None
        answer = self._answers.recv(8)
        if len(answer) < 8:
            raise RuntimeError("the warm server has ended")
        return answer

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float = DEADLINE_S) -> int:
        if self.returncode is None:
            answer = self._receive(timeout)
            if answer is None:
                raise subprocess.TimeoutExpired(self.args, timeout)
            (self.returncode,) = struct.unpack("!q", answer)
            self._answers.close()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = DEADLINE_S) -> tuple[str, str]:
        """Wait until the process has ended and its output is read."""
        read: dict[str, str] = {"stdout": "", "stderr": ""}

        def drain(name: str, stream: IO[str]) -> None:
            with contextlib.suppress(ValueError):
                read[name] = stream.read()

        streams = {"stdout": self.stdout, "stderr": self.stderr}
        readers = [
            threading.Thread(target=drain, args=(name, stream), daemon=True)
            for name, stream in streams.items()
            if stream is not None and not stream.closed
        ]
        for reader in readers:
            reader.start()
        end = time.monotonic() + timeout
        self.wait(timeout)
        for reader in readers:
            reader.join(max(end - time.monotonic(), 0.1))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout, "it has ended, but a process holds its streams")
        return read["stdout"], read["stderr"]

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def start(
    *arguments: object,
    script: str | Path = TRAIN,
    module: str | None = None,
    real: bool = False,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdout: Any = subprocess.PIPE,
    stderr: Any = subprocess.PIPE,
    new_session: bool = False,
    limits: Mapping[int, int] | None = None,
) -> "Process | subprocess.Popen[str]":
    """Start a command: `python train.py ARGUMENTS`, another `script`, or a `module` (`python -m`).

    Args:
        real: whether to start a new interpreter instead of a fork of the warm server.
        environment: variables to add to those of pytest.
        new_session: whether the command leads its own session and process group, for signals to all of it.
        limits: resource limits, e.g. `{resource.RLIMIT_AS: bytes}`.
    """
    argv = [*(["-m", module] if module else [str(script)]), *map(str, arguments)]
    folder, environ = str(cwd or Path.cwd()), dict(os.environ) | dict(environment or {})
    if CAN_FORK and not real:
        return Process(
            argv, stdout, stderr, cwd=folder, environ=environ, new_session=new_session, limits=dict(limits or {})
        )

    def prepare() -> None:
        # If pytest runs under nohup or in the background, children would inherit that these signals are ignored.
        for signum in (signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)
        if limits:
            import resource

            for limit, value in limits.items():
                resource.setrlimit(limit, (value, value))

    return subprocess.Popen(
        [sys.executable, *argv], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, text=True, cwd=folder,
        env=environ, start_new_session=new_session, preexec_fn=prepare if os.name == "posix" else None,
    )  # fmt: skip


def run(*arguments: object, timeout: float = DEADLINE_S, **how: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end. The arguments are those of `start`."""
    process = start(*arguments, **how)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def until(
    condition: Callable[[], Any],
    process: "Process | subprocess.Popen[str] | None" = None,
    seconds: float = DEADLINE_S,
    what: str | None = None,
) -> Any:
    """Wait until a condition is true, and return its value.

    Raises:
        AssertionError: The process ended first, or `seconds` have passed. Contains the process's stderr.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if process is not None and process.poll() is not None and not (value := condition()):
            raise AssertionError(f"{what or condition} never held; the process ended: {_exit_and_stderr(process)}")
        if value:
            return value
        if time.monotonic() > deadline:
            if process is not None:
                process.kill()
            output = _exit_and_stderr(process) if process is not None else ""
            raise AssertionError(f"{what or condition} did not hold within {seconds} s. {output}")
        time.sleep(0.01)
    return value


def _exit_and_stderr(process: "Process | subprocess.Popen[str]") -> str:
    try:
        return f"exit code {process.wait(timeout=10)}\n{process.communicate(timeout=10)[1]}"
    except subprocess.TimeoutExpired:
        return f"(process {process.pid} still holds its streams)"


_lock = threading.Lock()
_control: socket.socket | None = None
_process: "subprocess.Popen[bytes] | None" = None


def _server() -> socket.socket:
    """The socket of the warm server. The first call starts the server; later calls start it again if it has died."""
    global _control, _process
    if _process is not None and _process.poll() is not None:
        stop_server()
    if _control is None:
        _control, server_end = socket.socketpair()
        script = Path(__file__).with_name("warm_server.py")
        _process = subprocess.Popen(
            [sys.executable, str(script), str(server_end.fileno())],
            pass_fds=[server_end.fileno()], stdin=subprocess.DEVNULL, cwd="/", start_new_session=True,
        )  # fmt: skip
        server_end.close()
    return _control


def stop_server() -> None:
    """End the warm server and its remaining forks. Waiting for them adds their CPU time to that of pytest."""
    global _control, _process
    if _control is not None and _process is not None:
        _control.close()
        _process.wait(DEADLINE_S)
    _control = _process = None


def _open_stream(kind: Any, ends: list[int]) -> IO[str] | None:
    """Add the process's end of a stream to `ends`. If it is a pipe, return the end to read from."""
    if kind == subprocess.PIPE:
        reading_end, writing_end = os.pipe()
        ends.append(writing_end)
        return os.fdopen(reading_end, encoding="utf-8", errors="replace")
    if kind == subprocess.DEVNULL:
        ends.append(os.open(os.devnull, os.O_WRONLY))
    elif kind is None:
        ends.append(os.dup(1 + len(ends)))
    else:
        ends.append(os.dup(kind if isinstance(kind, int) else kind.fileno()))
    return None
