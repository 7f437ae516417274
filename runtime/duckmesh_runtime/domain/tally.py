"""What a lake transaction does to the rows of which table: what the ledger of the catalog adds up (migration 0010). Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Rows of one transaction.

    Attributes:
        rows: Inserted and deleted, by table.
        ended: Tables that are dropped, also those made anew under their name.
    """

    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)

    def add(self, table: str, *, inserted: int = 0, deleted: int = 0) -> None:
        """Count rows of a table that is there at the end; none at all for one that was just made."""
        before_in, before_out = self.rows.get(table, (0, 0))
        self.rows[table] = (before_in + inserted, before_out + deleted)

    def end(self, table: str) -> None:
        """Count a table as dropped, with all that it had."""
        self.rows.pop(table, None)
        self.ended.append(table)
