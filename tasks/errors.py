"""The one exception that reaches a user as a message instead of a stack trace."""


class InputError(Exception):
    """Something the user can mend: one short message saying what is wrong, where, and what to do.

    ``train.py`` and the scripts print it and leave with exit code 2.
    """

    def __init__(self, message: str):
        # A DataLoader worker re-raises with its whole traceback as the message: keep the last line.
        _, _, last = message.rpartition("tasks.errors.InputError: ")
        super().__init__(last.strip())
