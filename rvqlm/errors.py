"""The one exception for mistakes that a user can mend.

Commands print its message as one line on stderr and exit with status 2; nothing else in the
package catches it. The message names the file or value at fault and says what to do.
"""


class UserError(Exception):
    """Bad input, a missing file, contradictory options: shown without a traceback."""


def reason_of(error: BaseException) -> str:
    """What an exception of another library or the system says, in part of a line.

    >>> reason_of(FileNotFoundError(2, "No such file", "a.pt")), reason_of(ValueError())
    ('No such file', 'ValueError')
    """
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return (lines or [type(error).__name__])[0][:120]
