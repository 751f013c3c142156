#!/usr/bin/env python3
"""torchrun with an exit status that says what happened: that of the rank that failed first, or
128 + the signal that ended it.

torchrun itself ends with 1 in either case, so that a scheduler could not tell a wrong flag (2, and
starting again is in vain) from a training that saved because its machine was taken away (143).
"""

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: Sequence[str]) -> int:
    try:
        run.run(run.parse_args(list(argv)))
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"rank {rank} ended first, with exit status {status}", file=sys.stderr)
        return status
    except SignalException as e:
        return 128 + e.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
