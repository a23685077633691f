"""Every error that Limbeck raises on purpose, in one tree.

LimbeckError            exit 1   a run failed
|- SpecError            exit 2   wrong before the first call: spec, arguments, key reference, source, run directory
|- BudgetExhausted      exit 3   the budget does not cover another call; the run can be resumed with a larger one
|- LaneUnusable         exit 4   no lane can be used: key refused, quota, network
|- Interrupted          exit 130 stopped by a signal; the run can be resumed

All of them hold text alone, so they pickle, and none ever holds a request, a header or a key.
"""

from collections.abc import Iterator
from contextlib import contextmanager

# What code that is wrong, a disk or a library may raise: the places that end a command make one line of it.
UNFORESEEN = (OSError, ValueError, RuntimeError, LookupError, ArithmeticError, TypeError, AttributeError)


class LimbeckError(Exception):
    """A failure with one line of what happened and, where there is one, a hint of what to do next."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


def raised_there(error: Exception) -> Exception:
    """Ours, where the error that a remote call brought back wraps one of ours as its `cause`; else itself."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, LimbeckError) else error


class SpecError(LimbeckError):
    """Something is wrong before any teacher is called."""

    exit_status = 2


class BudgetExhausted(LimbeckError):
    """What is left of the budget does not cover another call."""

    exit_status = 3


class LaneUnusable(LimbeckError):
    """A teacher refuses the key, is out of money, or cannot be reached."""

    exit_status = 4


class Interrupted(LimbeckError):
    """A signal stopped the run; what was paid for is in the journal."""

    exit_status = 130


@contextmanager
def refused_as_spec() -> Iterator[None]:
    """Before the first call, whatever a file, a path or a value does that nobody foresaw is wrong input: one line."""
    try:
        yield
    except UNFORESEEN as error:
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        if isinstance(error, OSError) and error.filename:
            what = f"{error.filename}: {error.strerror or type(error).__name__}"
        raise SpecError(what, "--debug shows where it comes from") from error
