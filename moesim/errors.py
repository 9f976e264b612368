"""The exception tree and its exit codes.

::

    MoesimError            1   never raised itself
    ├── InputError         3   a file or value is wrong: every problem, one line each
    ├── InfeasibleError    4   nothing fits, or no plan meets the target
    └── CheckFailed        5   a calibration or validation threshold was missed

Everything else that escapes is a defect of moesim (exit code 1 with a traceback).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class MoesimError(Exception):
    """Base of every error that is told to the user without a traceback."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the input.

    Attributes
    ----------
    field : str
        Dotted path of the value, empty when the whole file is meant.
    message : str
        What was found and what is accepted.
    where : str
        ``file:line`` or ``--set`` or empty.
    """

    field: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        head = "  ".join(part for part in (self.where, self.field) if part)
        return f"{head}: {self.message}" if head else self.message


class InputError(MoesimError):
    """A file or a value is wrong; carries all problems found, not only the first."""

    exit_code = 3

    def __init__(self, problems: Iterable[Problem] | str, *, source: str = "") -> None:
        if isinstance(problems, str):
            problems = [Problem("", problems)]
        self.problems: Sequence[Problem] = tuple(problems)
        self.source = source
        super().__init__(str(self))

    def __str__(self) -> str:
        if len(self.problems) == 1 and not self.source:
            return str(self.problems[0])
        count = len(self.problems)
        head = f"{self.source or 'input'}: {count} problem{'s' if count != 1 else ''}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])

    @classmethod
    def at(cls, field: str, got: object, accepted: str, *, where: str = "") -> InputError:
        """Error of a single value: ``InputError.at('plan.ep', 6, 'a divisor of 256')``."""
        return cls([Problem(field, f"got {got!r}; accepted: {accepted}", where)])


class InfeasibleError(MoesimError):
    """Well-formed input that no machine or plan can satisfy, with need, have and the nearest remedy."""

    exit_code = 4


class CheckFailed(MoesimError):
    """A stated threshold (calibration, validation, regression) was missed."""

    exit_code = 5


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'bandwidth_bytes_per_s'?"`` or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
