"""Data files on disk: checksums, unpacking, downloads, and locks between processes."""

import gzip
import hashlib
import logging
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from laptime.data.image_data import cache_dir
from laptime.errors import UserError
from laptime.record.files import write_atomically
from laptime.text import byte_size

OFFLINE = "Without an Internet connection, use dataset=mnist or dataset=synthetic: they need no download."
CONNECT_TIMEOUT_S = 5.0
# Time for another process to download the largest data set on a slow connection.
_LOCK_TIMEOUT_S = 3600.0

log = logging.getLogger(__name__)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, expected: str) -> None:
    """Compare a file with its published SHA-256.

    Raises:
        UserError: they differ; names the file and both digests.
    """
    actual = sha256(path)
    if actual != expected:
        raise UserError(
            f"dataset: {path} is damaged or not the published file: SHA-256 {actual}, expected {expected}.\n"
            "Delete it and run again, or set dataset.verify=false to read your own files."
        )


def unpack(packed: Path, target: Path, expected: str | None) -> None:
    """Unpack a gzip file, check it, and create `target` atomically. Several processes may do this concurrently.

    Raises:
        UserError: the packed file is damaged, its content has another SHA-256 than `expected`, or `target` can't be
            written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent):
            if not target.is_file():  # otherwise another process has unpacked it
                write_atomically(target, unpacked(packed, expected))
    except OSError as error:
        raise UserError(
            f"dataset: {target.parent} can't be written ({error.strerror or error}). "
            "Choose another folder with dataset.root=DIR."
        ) from error


def unpacked(packed: Path, expected: str | None) -> bytes:
    """Return the content of a gzip file.

    Raises:
        UserError: the file is damaged, or its content has another SHA-256 than `expected`.
    """
    try:
        content = gzip.decompress(packed.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"dataset: {packed} is damaged: not a complete gzip file ({error}), SHA-256 {sha256(packed)}.\n"
            "Replace it by the published file."
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    if expected is not None and actual != expected:
        raise UserError(
            f"dataset: {packed} is damaged or not the published file: its content has SHA-256 {actual}, "
            f"expected {expected}.\nReplace it by the published file, or set dataset.verify=false."
        )
    return content


def download(
    name: str, folder: Path, manual_steps: str, fetch: Callable[[Path], object], is_complete: Callable[[], bool]
) -> None:
    """Download to a temporary folder, and move complete files to `folder`. Only one process downloads at a time.

    A damaged download is removed and repeated once. Without a network it fails within seconds and leaves no files.

    Args:
        name: the name of the data set, for messages.
        folder: where the files belong.
        manual_steps: instructions for installing the files without this download.
        fetch: downloads to the given folder. It raises RuntimeError if a checksum is wrong.
        is_complete: returns whether all files are in `folder`; another process may have downloaded them.

    Raises:
        UserError: the download failed, or `folder` can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if is_complete():
                return
            try:
                _fetch_and_move(fetch, folder)
            except RuntimeError as error:
                if "corrupted" not in str(error):
                    raise
                log.warning("dataset: the download of %s is damaged (%s): downloading it again", name, error)
                _fetch_and_move(fetch, folder)
    except (OSError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines) if lines else type(error).__name__
        raise UserError(f"dataset: {name} could not be downloaded ({reason}).\n{manual_steps} {OFFLINE}") from error


def _fetch_and_move(fetch: Callable[[Path], object], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        with _socket_timeout(CONNECT_TIMEOUT_S):
            fetch(Path(temporary))
        for path in sorted(Path(temporary).rglob("*")):
            target = folder / path.relative_to(temporary)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of new sockets. torchvision 0.29 has no timeout for downloads (not reported upstream)."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder between the processes of this user."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    lock_dir = cache_dir().with_name("locks")
    lock = FileLock(lock_dir / name, timeout=_LOCK_TIMEOUT_S)
    try:
        lock_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # can't lock: all processes do the work, and complete files replace others
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def create_atomically(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Create a folder atomically. Several processes may do this concurrently.

    Args:
        folder: the folder to create; it must not exist.
        num_bytes: the size of the files to be written.

    Yields:
        A temporary folder to write to, which becomes `folder`.

    Raises:
        UserError: the folder can't be written, or the disk is too full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if num_bytes > free:
            raise UserError(
                f"dataset: {folder} needs {byte_size(num_bytes, 'GB')}, but only {byte_size(free, 'GB')} are free. "
                "Choose another folder with dataset.root=DIR, or a smaller data set."
            )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".being-made-") as temporary:
            unfinished = Path(temporary) / folder.name
            unfinished.mkdir()
            yield unfinished
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process has created the same folder
                    raise
    except OSError as error:
        raise UserError(
            f"dataset: {folder} can't be written ({error.strerror or error}). Choose another folder with "
            "dataset.root=DIR."
        ) from error


def is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder, or in its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)
