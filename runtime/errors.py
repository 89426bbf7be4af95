"""The errors that a user can meet, one class per exit code of the command line.

Raise them where the cause is known, with the remedy in the message: the command line prints the message alone, and
a caller in Python can tell the kinds apart by class.
"""


class PalmtopError(Exception):
    """Base of every error that palmtop raises on purpose. `exit_code` is what the command line exits with."""

    exit_code = 2


class ParityError(PalmtopError):
    """An artifact does not match the reference, or the golden vectors of its bundle (exit code 1)."""

    exit_code = 1


class RequestError(PalmtopError):
    """The request is wrong: unknown task, missing file, bad option, missing optional dependency (exit code 2)."""

    exit_code = 2


class DamagedError(PalmtopError):
    """A bundle, checkpoint or model file is damaged, altered or not trusted (exit code 3)."""

    exit_code = 3


class UnsupportedError(PalmtopError):
    """The model cannot be expressed in a target: names the operation, its module and what to do (exit code 4)."""

    exit_code = 4
