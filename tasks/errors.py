"""What reaches a user as a message instead of a stack trace."""

import sys
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
