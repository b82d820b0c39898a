"""Which of the runs that were read a figure shows.

from lcfbench.analysis.selection import select
select(read_run_groups(paths).groups, tasks=["planted"], pairs=[])
"""

from __future__ import annotations

from collections.abc import Sequence

from lcfbench.analysis.run_groups import RunGroup
from lcfbench.errors import UserError, unknown


def select(groups: Sequence[RunGroup], tasks: Sequence[str], pairs: Sequence[str]) -> list[RunGroup]:
    """Returns the groups of these tasks and pairs; an empty list of names takes all.

    Raises UserError for a name that no run has, and where no run has both.
    """
    found = list(groups)
    for field, names in (("task", tasks), ("pair", pairs)):
        there = sorted({getattr(group, field) for group in groups} - {""})
        for name in names:
            if name not in there:
                raise unknown(f"{field} of these runs", name, there, "lcfbench show")
        found = [group for group in found if not names or getattr(group, field) in names]
    if groups and not found:
        what = f"no run of {', '.join(tasks)} with {', '.join(pairs)}."
        raise UserError(what, "`lcfbench show` lists pairs and tasks.")
    return found
