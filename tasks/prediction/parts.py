"""A folder of parts that several processes work in, any of which may be killed.

Locks are ranges of bytes of one file: the system drops them when a process ends, however it ends.
The folder is removed by the process that has put the parts together, its plan first and the file
of locks last. So a process that waited for another and finds no plan knows that all is done.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import InputError, told_of, write_atomically

_ENTRY, _INSIDE, _FIRST_PART = 0, 1, 2  # bytes: to come in or finish; shared by all inside; parts


class Parts:
    """The folder, entered; made by `entered`.

    Attributes:
        folder: where the parts lie.
    """

    def __init__(self, folder: Path, plan: str, file: int):
        self.folder, self._plan, self._file = folder, plan, file

    def path(self, number: int) -> Path:
        """The path of a finished part."""
        return self.folder / f"{number:06d}.tif"

    @contextlib.contextmanager
    def claimed(self, number: int, wait: bool) -> Iterator[bool | None]:
        """Whether the part is to be made here, and by no other process meanwhile; None: another
        process is at it, and ``wait`` is false."""
        with self._locked(_FIRST_PART + number, wait) as got:
            # In this order: parts are removed after the plan.
            yield None if not got else not self.path(number).exists() and self._is_open()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[bool]:
        """For one process after the other: whether none has put the parts together yet."""
        with self._locked(_ENTRY):
            yield self._is_open()

    def remove(self) -> None:
        """Removes the folder; call it inside of `finishing`."""
        self._clear()
        (self.folder / "lock").unlink()
        with contextlib.suppress(OSError):  # another process begins anew in it
            self.folder.rmdir()

    def _is_open(self) -> bool:
        plan = self.folder / "plan.json"
        return plan.exists() and plan.read_bytes() == self._plan.encode() and self._is_there()

    def _is_there(self) -> bool:
        """Whether the file of locks is the one that this process has open."""
        try:
            return os.path.samestat(os.stat(self.folder / "lock"), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _begin(self, anew: bool) -> None:
        plan = self.folder / "plan.json"
        if plan.exists() and plan.read_bytes() != self._plan.encode():
            if not anew:
                raise InputError(
                    f"{self.folder} has a part of another prediction of the same name: continue it "
                    "with its own options, or begin anew with --overwrite"
                )
            with self._locked(_INSIDE, wait=False) as alone:
                if not alone:
                    raise InputError(
                        f"another process is at work in {self.folder} with other options: wait "
                        "for its end, or stop it"
                    )
                self._clear()
        if not plan.exists():
            self._clear()  # what is left of a removal that was interrupted
            write_atomically(plan, self._plan)
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _INSIDE)

    def _clear(self) -> None:
        (self.folder / "plan.json").unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    @contextlib.contextmanager
    def _locked(self, byte: int, wait: bool = True) -> Iterator[bool]:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)


@contextlib.contextmanager
def entered(folder: Path, plan: str, anew: bool) -> Iterator[Parts]:
    """Makes the folder, or joins the processes that work in it by the same plan.

    Args:
        folder: is made if it does not exist.
        plan: what all parts follow from.
        anew: whether parts of another plan are removed.

    Raises:
        InputError: there are parts of another plan, or the folder cannot be written.
    """
    while True:
        with told_of(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # removed just now
        try:
            parts = Parts(folder, plan, file)
            with told_of(folder), parts._locked(_ENTRY):
                if not parts._is_there():
                    continue  # removed while this process waited
                parts._begin(anew)
            yield parts
            return
        finally:
            os.close(file)
