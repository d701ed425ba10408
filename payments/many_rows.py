"""One statement for many rows, for what is written thousands of times a second.

SQLAlchemy looks at each parameter of each row; here it makes the text once per dialect, and the rows go to
the driver as they are. So they hold what the driver itself takes: whole numbers, text, octets, None.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import ClauseElement, Dialect
from sqlalchemy.dialects import postgresql, sqlite

from payments.ports import Transaction

Row = Mapping[str, Any]
SQLITE = sqlite.dialect()


class ManyRows:
    """A statement all of whose values are parameters. Rows have two parameters at least."""

    def __init__(self, statement: ClauseElement | Callable[[Any], Any]) -> None:
        """Or what makes one of a dialect, for clauses that SQLAlchemy keeps with each."""
        self._statement = statement
        self._texts: dict[str, tuple[str, Callable[[Row], tuple[Any, ...]]]] = {}

    async def execute(self, tx: Transaction, rows: Sequence[Row]) -> int:
        """How many rows were concerned; -1 where the driver does not tell. `rows` has one at least."""
        text, values = self._compiled(tx.dialect)
        return (await tx.exec_driver_sql(text, [values(row) for row in rows])).rowcount

    def execute_at_once(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> int:
        """As `execute`, in the thread of this connection."""
        text, values = self._compiled(SQLITE)
        return connection.executemany(text, [values(row) for row in rows]).rowcount

    def _compiled(self, dialect: Dialect) -> tuple[str, Callable[[Row], tuple[Any, ...]]]:
        if dialect.name not in self._texts:
            statement = self._statement
            if not isinstance(statement, ClauseElement):
                statement = statement(postgresql if dialect.name == "postgresql" else sqlite)
            compiled: Any = statement.compile(dialect=dialect)
            self._texts[dialect.name] = str(compiled), itemgetter(*compiled.positiontup)
        return self._texts[dialect.name]
