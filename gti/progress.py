"""Progress bars of long work: lively on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)

try:
    from tqdm import tqdm
except ValueError as problem:  # it reads variables TQDM_... when it is imported
    unfit = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("TQDM_")}
    shown = ", ".join(f"{name}={value}" for name, value in unfit.items())
    log.warning("not used: %s (%s)", shown, problem)
    from tqdm import tqdm

T = TypeVar("T")

SECONDS_ON_TERMINAL = 0.2
SECONDS_IN_LOG = 15.0


def progress_bar(total: int | None, title: str, unit: str = "batch") -> tqdm:
    """Return a progress bar on stderr; no `title` shows none. Totals below 0 are unknown."""
    return tqdm(
        total=total if total is None or total >= 0 else None,
        desc=title,
        unit=unit,
        disable=not title,
        mininterval=SECONDS_ON_TERMINAL if sys.stderr.isatty() else SECONDS_IN_LOG,
        dynamic_ncols=sys.stderr.isatty(),
    )


def progress_over(items: Iterable[T], total: int | None, title: str, unit: str = "batch") -> Iterator[T]:
    """Yield `items` and show a progress bar meanwhile; see `progress_bar`."""
    with progress_bar(total, title, unit) as bar:
        for item in items:
            yield item
            bar.update()
