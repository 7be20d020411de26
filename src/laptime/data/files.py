"""Data files on disk: checksums, unpacking, and what to say when one is damaged or can't be fetched."""

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

OFFLINE = "Work with no network: dataset=mnist, dataset=synthetic."
CONNECT_TIMEOUT_S = 5.0
# As long as the largest of them takes to download on a slow line, and be it in another process.
_LONGEST_WAIT_S = 3600.0

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
            "Delete it and run again, or read files of your own with dataset.verify=false."
        )


def unpack(packed: Path, target: Path, expected: str | None) -> None:
    """Unpack a gzip file; `target` appears whole and checked, or not at all, also when several processes do it at once.

    Raises:
        UserError: the packed file is damaged, its content has another SHA-256 than `expected`, or `target` can't be
            written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(target.parent):
            if not target.is_file():  # else another process has unpacked it meanwhile
                write_atomically(target, _unpacked(packed, expected))
    except OSError as error:
        raise UserError(
            f"dataset: {target.parent} can't be written ({error.strerror or error}). "
            "Choose another folder with dataset.root=DIR."
        ) from error


def _unpacked(packed: Path, expected: str | None) -> bytes:
    try:
        content = gzip.decompress(packed.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"dataset: {packed} is damaged: no whole gzip file ({error}), SHA-256 {sha256(packed)}.\n"
            "Put the published file in its place."
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    if expected is not None and actual != expected:
        raise UserError(
            f"dataset: {packed} is damaged or not the published file: its content has SHA-256 {actual}, "
            f"expected {expected}.\nPut the published file in its place, or use dataset.verify=false."
        )
    return content


def download(
    what: str, folder: Path, by_hand: str, fetch: Callable[[Path], object], is_there: Callable[[], bool]
) -> None:
    """Download into a folder of its own and move what came there, whole, to where it belongs; one process at a time.

    What arrives damaged is removed and fetched once more. Without a network it gives up within seconds, leaves nothing
    behind, and says what to do.

    Args:
        what: the data set.
        folder: where its files belong.
        by_hand: which files to put where.
        fetch: downloads to the folder it is given, and raises RuntimeError for what has another checksum.
        is_there: whether another process has fetched it meanwhile.

    Raises:
        UserError: the download failed, or `folder` can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder):
            if is_there():
                return
            try:
                _fetch_and_move(fetch, folder)
            except RuntimeError as error:
                if "corrupted" not in str(error):
                    raise
                log.warning("dataset: %s arrived damaged (%s): fetching it again", what, error)
                _fetch_and_move(fetch, folder)
    except (OSError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines) if lines else type(error).__name__
        raise UserError(f"dataset: {what} could not be downloaded ({reason}).\n{by_hand} {OFFLINE}") from error


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
    """Let new sockets of this process give up: torchvision 0.29 takes no timeout for its downloads (not reported
    upstream)."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process of this user does this with the same folder."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    place = cache_dir().with_name("locks")
    lock = FileLock(place / name, timeout=_LONGEST_WAIT_S)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # no such place: then everybody works, and whole files replace each other
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def appearing(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Fill a folder that appears whole, or not at all, also when several processes make it at once.

    Args:
        folder: doesn't exist.
        num_bytes: what will be written to it.

    Yields:
        The folder to write to.

    Raises:
        UserError: it can't be written, or there is no room for it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if num_bytes > free:
            raise UserError(
                f"dataset: {folder} would take {byte_size(num_bytes, 'GB')}, and {byte_size(free, 'GB')} are free "
                "there. Choose another folder with dataset.root=DIR, or a smaller data set."
            )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".being-made-") as temporary:
            there = Path(temporary) / folder.name
            there.mkdir()
            yield there
            try:
                there.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was first, with the same
                    raise
    except OSError as error:
        raise UserError(
            f"dataset: {folder} can't be written ({error.strerror or error}). Choose another folder with "
            "dataset.root=DIR."
        ) from error


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)
