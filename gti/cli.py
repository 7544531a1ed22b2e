"""What every script does around its work: errors become one sentence and exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from gti.errors import GtiError


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and leave the process with its exit status.

    0 for None; 2 for a `GtiError` (a user's mistake, said in one sentence without a traceback);
    130 for Ctrl-C. Anything else is a defect of the kit and keeps its traceback.
    """
    try:
        status = main() or 0
    except GtiError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing is wrong, and nobody listens.
        sys.stderr.close()
        status = 0
    sys.exit(status)
