"""What reaches a user as a message instead of a stack trace, and commands that end with one."""

import codecs
import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class InputError(Exception):
    """Something the user can mend: one short message saying what is wrong, where, and what to do.

    ``train.py`` and the scripts print it and leave with exit code 2.
    """

    def __init__(self, message: str):
        # A DataLoader worker re-raises with its whole traceback as the message: keep the last line.
        _, _, last = message.rpartition("tasks.errors.InputError: ")
        super().__init__(last.strip())


class Busy(Exception):
    """Another process works on the run in this directory."""

    def __init__(self, directory: Path):
        super().__init__(f"another process works on {directory}; leaving it alone")
        self.directory = directory


def say(message: str) -> None:
    """Prints to standard error at once, so that order is kept beside a progress bar."""
    print(message, file=sys.stderr, flush=True)


def say_left_out(path: Path, error: InputError) -> None:
    """Says why a file was not used; the others are."""
    place = "" if str(path) in str(error) else f"{path}: "
    say(f"left out: {place}{error}")


# ----------------------------------------------------------------------- what the machine lacks

_SPACE = "free some space, then give the same command again"
_WRITABLE = "give a folder that you may write to"
_REMEDIES = {
    errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EFBIG: _SPACE,
    errno.EROFS: _WRITABLE, errno.EACCES: _WRITABLE, errno.EPERM: _WRITABLE,
    errno.EMFILE: "allow more open files (ulimit -n) or lower data.workers",
}  # fmt: skip
_NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def lack(error: BaseException) -> str | None:
    """A message if the machine lacks what a program needs: space, permission, memory; else None."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _REMEDIES:
            place = cause.filename or "a file"
            return f"{place}: {cause.strerror}; {_REMEDIES[cause.errno]}"
        first = next(iter(str(cause).splitlines()), "")
        of_memory = isinstance(cause, MemoryError) or getattr(cause, "errno", 0) == errno.ENOMEM
        if of_memory or (isinstance(cause, RuntimeError) and _names_memory(str(cause))):
            reason = f" ({first[:160]})" if first else ""
            return (
                f"out of memory{reason}: free some, or lower data.batch_size, data.crop or "
                "data.workers; an unchanged command continues from the last checkpoint"
            )
    return None


def _names_memory(text: str) -> bool:
    return any(words in text for words in _NO_MEMORY) or (
        "DataLoader worker" in text and "killed by signal" in text
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from: libraries hide a full disk behind errors of their own."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@contextlib.contextmanager
def told_of(place: Path) -> Iterator[None]:
    """Around code that writes: what the system refuses becomes one message that names the place.

    Raises:
        InputError: something could not be written.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        refused = [cause for cause in _causes(error) if isinstance(cause, OSError)]
        if not refused:
            raise
        first = refused[-1]  # the others came from it
        remedy = _REMEDIES.get(first.errno or 0, "give another place, or remove what is there")
        reason = first.strerror or next(iter(str(first).splitlines()), type(first).__name__)
        raise InputError(f"{place} cannot be written: {reason}; {remedy}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes ``path`` when the block ends, or is removed if it fails.

    The file has either its old content or the new one, never a part of it.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with told_of(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a whole file or, see `replacing`, nothing; text is UTF-8."""
    text = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(text)


# ------------------------------------------------------------------------------------- commands


def command(main: Callable[[], None]) -> Callable[[], None]:
    """A script's main function: a mistake of the user ends in a message and exit code 2."""

    @functools.wraps(main)
    def wrapped() -> None:
        open_console()
        try:
            main()
            sys.stdout.flush()  # here, where a full disk or a closed pipe is still answered
        except InputError as error:
            say(f"error: {error}")
            sys.exit(2)
        except KeyboardInterrupt:
            say("stopped; give the same command again")
            sys.exit(130)
        except BrokenPipeError:  # the reader, such as `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(141)
        except Exception as error:
            message = lack(error)
            if message is None:
                raise
            say(f"error: {message}")
            sys.exit(2)

    return wrapped


def open_console() -> None:
    """Lets standard output and error take every character, whatever the locale."""
    codecs.register_error("console", _escaped)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a test's own stream
            stream.reconfigure(errors="console")  # type: ignore[union-attr]


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """A byte of a file name as that byte, any other character that does not fit as an escape."""
    for handler in ("surrogateescape", "backslashreplace"):
        with contextlib.suppress(UnicodeError):
            return codecs.lookup_error(handler)(error)
    raise error
