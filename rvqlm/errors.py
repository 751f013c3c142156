"""The one exception for mistakes that a user can mend.

Commands print its message as one line on stderr and exit with status 2; nothing else in the
package catches it. The message names the file or value at fault and says what to do.
"""


class UserError(Exception):
    """Bad input, a missing file, contradictory options: shown without a traceback."""
