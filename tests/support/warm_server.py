"""Starts commands by forking a process that has already imported torch, Lightning and Hydra.

Importing them takes four seconds, and the tests start hundreds of commands. `python warm_server.py FD` listens on the
socket FD. Each request forks the server once. The fork takes over the command's arguments, folder, environment and
streams, and then runs the script as `python SCRIPT` would. It ends with Python's exit handlers, without the rest of
Python's shutdown, which takes a second to free the imported modules.

The server computes nothing and starts no thread, so a fork contains only imported modules. Laptime starts its ranks in
the same way (laptime.runner.fresh_processes).
"""

import atexit
import contextlib
import gc
import os
import pickle
import resource
import runpy
import select
import signal
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing import forkserver, util
from pathlib import Path

from laptime import fast_start

# Not laptime.config.security, nor laptime.cli.train, which imports it: it reads the environment when it is imported.
PRELOADED = (
    "laptime.runner.rank_process", "laptime.runner.launch", "laptime.analysis.sweep_callback",
    "laptime.analysis.report", "laptime.analysis.plots", "laptime.cli.dispatch", "laptime.config.compose",
    "laptime.sweeps.hydra_jobs", "laptime.sweeps.plan", "laptime.sweeps.notify", "laptime.sweeps.core_slots",
    "laptime.models.mlp", "hydra.main", "torch.utils.tensorboard", "filelock",
)  # fmt: skip
LENGTH = struct.Struct("!I")


@dataclass
class Request:
    """A command to start. Standard input, output and error are sent as file descriptors.

    Attributes:
        argv: script or ["-m", module], then its arguments.
        cwd: the current folder of the command.
        environ: all of its environment variables.
        new_session: whether it leads its own session and process group.
        limits: resource limits, e.g. `{resource.RLIMIT_AS: bytes}`.
        umask: mode bits that new files lack.
    """

    argv: list[str]
    cwd: str
    environ: dict[str, str]
    new_session: bool = False
    limits: dict[int, int] = field(default_factory=dict)
    umask: int = 0o022


def serve(control: socket.socket) -> Request:
    """Fork for each request. Returns only in a fork, with its request.

    Each request comes with four file descriptors: standard input, output and error, and a socket on which the server
    answers with the fork's process id and, after its end, its status (8 bytes each).
    """
    wakeup, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which then closes the socket
    watched: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([control, wakeup], [], [])
        if wakeup in readable:
            os.read(wakeup, 4096)
            report_ended(watched)
        if control not in readable:
            continue
        head, descriptors, _, _ = socket.recv_fds(control, LENGTH.size, 4)
        (length,) = LENGTH.unpack(head) if head else (1,)
        content = b""
        while len(content) < length:
            if not (chunk := control.recv(length - len(content))):  # pytest has ended
                for pid in watched:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                os._exit(0)
            content += chunk
        *streams, answers = descriptors
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (wakeup, wake, answers, control.detach()):
                os.close(descriptor)
            for answering in watched.values():
                answering.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return Request(**pickle.loads(content))
        for stream in streams:
            os.close(stream)
        watched[pid] = socket.socket(fileno=answers)
        watched[pid].sendall(struct.pack("!q", pid))


def report_ended(watched: dict[int, socket.socket]) -> None:
    """Send the exit codes of forks that have ended: negative for a signal, as subprocess has them."""
    for pid in list(watched):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with watched.pop(pid) as answering, contextlib.suppress(OSError):  # the test has closed its end
                answering.sendall(struct.pack("!q", os.waitstatus_to_exitcode(status)))


def prepare(request: Request) -> None:
    """Set this process's folder, environment, signals and limits to those of the command."""
    if request.new_session:
        os.setsid()
    os.umask(request.umask)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environ)
    for signum in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for limit, value in request.limits.items():
        resource.setrlimit(limit, (value, value))
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, buffering, encoding="utf-8", errors=errors, closefd=False)
        for number, mode, buffering, errors in ((0, "r", -1, None), (1, "w", -1, None), (2, "w", 1, "backslashreplace"))
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    util.spawnv_passfds = fork_python


def run(request: Request) -> int:
    """Run the command in this process as `__main__`, and return its exit code."""
    try:
        _run(request)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _run(request: Request) -> None:
    is_module = request.argv[0] == "-m"
    script_folder = request.cwd if is_module else str(Path(request.argv[0]).parent)
    python_path = [path for path in request.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    server_paths = [path for path in sys.path if path != str(Path(__file__).parent)]
    sys.path[:] = list(dict.fromkeys([script_folder, *python_path, *server_paths]))
    sys.orig_argv = [sys.executable, *request.argv]
    if is_module:
        sys.argv = [request.argv[1], *request.argv[2:]]
        runpy.run_module(request.argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(request.argv)
        runpy.run_path(request.argv[0], run_name="__main__")


def parse_overrides() -> None:
    """Fill the cache of Hydra's parser: without it, the first overrides take ten times as long as later ones."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    samples = ["a.b=1.5", "+a=[1,b]", "a={b:1,_c_:d.e}", "~a", "a=1,2", "a='b'", "a@b=c", "a=null", "a=choice(1,2)"]
    OverridesParser.create().parse_overrides([*samples, "a=x y"])


start_interpreter = util.spawnv_passfds
# Laptime's threads that sleep and hold no lock for which a fork could wait.
SLEEPERS = {"heartbeat", "launcher watch"}


def fork_python(path: bytes, args: list[str], passfds: list[int]) -> int:
    """Replace multiprocessing.util.spawnv_passfds: run the code of `python -c CODE` in a fork.

    A process that has other threads, including torch's, which Python doesn't list, starts an interpreter nevertheless:
    its fork could wait for a lock that one of the threads held.
    """
    sleeping = [thread for thread in threading.enumerate() if thread.name in SLEEPERS]
    if len(list(Path("/proc/self/task").iterdir())) > 1 + len(sleeping):
        return int(start_interpreter(path, args, passfds))
    pid = os.fork()
    if pid:
        return pid
    try:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, signal.SIG_DFL if signum != signal.SIGINT else signal.default_int_handler)
        descriptors = sorted({0, 1, 2, *passfds})
        for low, high in zip(descriptors, [*descriptors[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        # The caller holds the lock of its forkserver. A rank that starts one for its data workers would wait forever.
        forkserver._forkserver.__init__()  # type: ignore[misc]
        exec(args[-1], {"__name__": "__main__"})
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    fast_start.begin()
    for module in PRELOADED:
        __import__(module)
    parse_overrides()
    gc.collect()
    gc.freeze()  # all forks share the imported objects, which are never collected
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    prepare(command)
    exit_code = run(command)
    threading._shutdown()  # waits for threads, as Python's shutdown does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
