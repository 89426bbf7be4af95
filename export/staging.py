"""A folder that is made aside and takes its place whole, or leaves nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..runtime.errors import RequestError
from ..runtime.manifest import MANIFEST_NAME

# A disk with less than this many bytes left is full.
_LEAST_FREE = 1_000_000
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def staging(destination: Path, force: bool) -> Iterator[Path]:
    """A folder beside the destination that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        RequestError: the destination exists and may not be replaced, or its parent cannot be written.
    """
    check_destination(destination, force)
    parent = destination.absolute().parent
    aside = parent / f".{destination.name}.{os.getpid()}.partial"
    new = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent, destination.name)
        aside.mkdir()
    except OSError as error:
        raise RequestError(f"Cannot write {destination}: {error.strerror}.") from error
    try:
        yield aside
        _put_in_place(aside, destination)
    except OSError as error:
        if error.errno not in _FULL and not _is_within(error.filename, parent):
            raise
        raise RequestError(f"Cannot write {destination}: {error.strerror or error}. Nothing was left there.") from error
    except Exception as error:  # some libraries tell of a full disk in other words
        full = next((place for place in (parent, Path(tempfile.gettempdir())) if _is_full(place)), None)
        if full is None:
            raise
        raise RequestError(
            f"Cannot write {destination}: the disk of {full} is full. Nothing was left there."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for folder in new:  # those that hold a bundle now stay
            with contextlib.suppress(OSError):
                folder.rmdir()


def _is_within(name: object, folder: Path) -> bool:
    return isinstance(name, (str, Path)) and Path(name).absolute().is_relative_to(folder)


def _is_full(place: Path) -> bool:
    return shutil.disk_usage(place).free < _LEAST_FREE


def _put_in_place(aside: Path, destination: Path) -> None:
    """Rename a finished folder to the destination; what stands there is back if that does not succeed."""
    if not destination.exists():
        aside.rename(destination)
        return
    old = destination.absolute().parent / f".{destination.name}.{os.getpid()}.old"
    try:
        destination.rename(old)
        aside.rename(destination)
    except BaseException:
        if old.exists() and not destination.exists():
            old.replace(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_destination(destination: Path, force: bool) -> None:
    """Refuse a destination that holds something, before any work is done."""
    if destination.is_symlink():
        raise RequestError(f"{destination} is a symbolic link; name the place that it leads to.")
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not force:
        raise RequestError(f"{destination} exists already. Choose another name, or replace it with --force.")
    if not (destination / MANIFEST_NAME).is_file():
        raise RequestError(f"{destination} is not a palmtop bundle; --force replaces nothing else.")


def _remove_abandoned(parent: Path, name: str) -> None:
    """What exports of processes that were killed left behind."""
    for path in parent.glob(f".{name}.*.partial"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)
