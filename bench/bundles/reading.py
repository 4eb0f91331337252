"""Reading a part that goes into a merge or a bundle: whole, or refused with what to do about it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from bench.errors import StoreError
from bench.store.parts import NewerFormatError, UnreadableError, read

_NEXT = {
    "plan": "delete it and run the same bench sweep again on its machine: it plans anew and keeps the runs that are "
    "whole",
    "run": "run the same bench sweep again on its machine: it sets the part aside and runs it again",
    "estimates": "run the same bench sweep again on its machine: it sets the part aside and makes it again",
}


def read_whole(path: Path, kind: str) -> pa.Table:
    """One part's rows, as `bench.store.parts.read` gives them.

    Raises:
        StoreError: As `read`; of a damaged part it also says what to do next, by its kind.
    """
    try:
        return read(path, kind)
    except (NewerFormatError, UnreadableError):
        raise
    except StoreError as error:
        raise StoreError(f"{error}. Where there is no copy of it to restore, {_NEXT[kind]}") from error
