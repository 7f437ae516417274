"""Which statements a tenant may run: one SELECT over the lake's tables, built-in functions only. Pure.

The sandbox parses the text with DuckDB itself and hands over the tree of `json_serialize_sql`; nothing here looks at SQL
text. Everything is allowed by name: query nodes, table references, expression classes, functions. What a new DuckDB
adds is refused until it stands here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeGuard

from duckmesh_runtime.domain.lakesql import LAKE
from duckmesh_runtime.errors import Invalid

MAX_SQL_BYTES: Final = 64 * 2**10

TABLE_FUNCTIONS: Final = frozenset(
    {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}
)

REFUSED_FUNCTIONS: Final[Mapping[str, str]] = {
    name: reason
    for reason, names in {
        "it reads the engine's settings or session": (
            "current_connection_id current_query current_query_id current_setting current_transaction_id "
            "getvariable get_block_size in_search_path inet_client_addr inet_client_port inet_server_addr "
            "inet_server_port parse_duckdb_log_message stats txid_current vector_type"
        ),
        "it runs or hides SQL inside of values": (
            "json_deserialize_sql json_serialize_plan json_serialize_sql json_execute_serialized_sql "
            "query query_table"
        ),
        "it changes state": "currval nextval setseed write_log",
        "it only waits": "pg_sleep sleep_ms",
        # Both take bytes for an aggregate's memory.
        "it reads raw engine memory": "combine finalize variant_bytes_to_variant",
        "it describes the engine's own catalog": "col_description obj_description shobj_description",
    }.items()
    for name in names.split()
}
"""Built-in scalar functions, aggregates and macros that are not for tenants, each with its reason."""

_INTERNAL: Final = re.compile(r"__internal_|pg_(?!size_pretty$|typeof$)|has_\w+_privilege$")
# The grammar makes these without their being in DuckDB's list of scalar functions.
_OF_THE_GRAMMAR: Final = frozenset({"unnest"})

_NODES: Final = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_TABLES: Final = frozenset(
    {
        "BASE_TABLE",
        "SUBQUERY",
        "JOIN",
        "TABLE_FUNCTION",
        "EXPRESSION_LIST",
        "EMPTY",
        "PIVOT",
        "SHOW_REF",
    }
)
_EXPRESSIONS: Final = frozenset(
    {
        "BETWEEN",
        "CASE",
        "CAST",
        "COLLATE",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "DEFAULT",
        "FUNCTION",
        "LAMBDA",
        "LAMBDA_REF",
        "OPERATOR",
        "PARAMETER",
        "POSITIONAL_REFERENCE",
        "STAR",
        "SUBQUERY",
        "TYPE",
        "WINDOW",
    }
)
_TABLE_KEYS: Final = ("from_table", "left", "right", "source")
_SHOWN: Final = frozenset({'"tables"', "__show_tables_expanded"})
_INFORMATION: Final = frozenset({"tables", "columns"})
# DuckDB reads a file when no table has the name and it looks like a path or URL.
_NO_TABLE_NAME: Final = re.compile(r"[./\\:*?\[\]{}~\x00-\x1f]")

_ALLOWED: Final = (
    "allowed is one SELECT (or WITH, VALUES, FROM, DESCRIBE, SUMMARIZE, SHOW TABLES, EXPLAIN of a SELECT) "
    "over this lake's tables"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the engine at hand knows.

    Attributes:
        functions: Names that may be called as scalar function, aggregate or window, in lower case.
        system_views: Names of built-in views, in lower case: without the lake's name, they are not its tables.
    """

    functions: frozenset[str]
    system_views: frozenset[str]


def allowed_functions(built_in: Iterable[str]) -> frozenset[str]:
    """The engine's scalar functions, aggregates and macros without what is refused."""
    names = {name.lower() for name in built_in} | _OF_THE_GRAMMAR
    return frozenset(n for n in names if n not in REFUSED_FUNCTIONS and not _INTERNAL.match(n))


def check_text(sql: str) -> None:
    """Refuse a text that is too long or not text, before anything parses it.

    Raises:
        Invalid: SQL_NOT_ALLOWED.
    """
    if len(sql.encode("utf-8", "surrogatepass")) > MAX_SQL_BYTES:
        raise refused(
            f"the statement is longer than {MAX_SQL_BYTES} bytes", "send long lists as params"
        )
    if "\x00" in sql:
        raise refused("the statement contains a NUL character", "remove it")


def check_tree(tree: object, rules: Rules) -> None:
    """Refuse a statement that is more than a SELECT over the lake's tables.

    Args:
        tree: The value of `json_serialize_sql` for exactly one statement.
        rules: Of the engine that will run it.

    Raises:
        Invalid: SQL_NOT_ALLOWED with what is refused and what is allowed; its context has `offset`, in bytes of the
            statement, where the tree says where.
    """
    for item in _dicts(tree):
        _check_shape(item)
        kind = item.get("type")
        if "function_name" in item:
            if item.get("class") not in ("FUNCTION", "WINDOW"):
                raise refused("a part of the statement is not known", at=item)
        elif kind == "BASE_TABLE":
            _check_table(item, rules)
        elif kind == "SHOW_REF":
            _check_show(item)
    for item, is_table in _calls(tree):
        _check_call(item, is_table, rules)
    for item in _dicts(tree):
        _check_moment(item)


def refused(
    problem: str, allowed: str = _ALLOWED, *, at: Mapping[str, object] | None = None
) -> Invalid:
    """The error: what is refused, then what to do; `at` is the part of the tree that is meant."""
    offset = (at or {}).get("query_location")
    context = {"offset": offset} if isinstance(offset, int) else None
    return Invalid("SQL_NOT_ALLOWED", f"sql: {problem}; {allowed}", context=context)


def _check_shape(item: Mapping[str, object]) -> None:
    kind = str(item.get("type"))
    if "class" in item and str(item["class"]) not in _EXPRESSIONS:
        raise refused(f"{item['class']} expressions are not allowed", at=item)
    if kind.endswith("_NODE") and kind not in _NODES:
        raise refused("a statement inside the SELECT is not allowed", at=item)
    for key in _TABLE_KEYS:
        table = item.get(key)
        if _is_dict(table) and "class" not in table:
            found = str(table.get("type"))
            if found not in _TABLES and found not in _NODES:  # both sides of UNION are nodes
                raise refused(f"{found} is not allowed as a table", at=table)


def _check_table(item: Mapping[str, object], rules: Rules) -> None:
    catalog, schema, name = (
        str(item.get(key, "")).lower() for key in ("catalog_name", "schema_name", "table_name")
    )
    if schema == "information_schema" and catalog == LAKE:
        # The engine has one for all its catalogs, and none in a catalog.
        raise refused(
            f"there is no {LAKE}.information_schema",
            "use information_schema.tables or .columns, which show this lake alone",
            at=item,
        )
    if schema == "information_schema" and not catalog:
        if name not in _INFORMATION:
            raise refused(
                f"information_schema.{name} is not for queries",
                "use information_schema.tables or .columns",
                at=item,
            )
        return
    # `a.t` may name a schema or a catalog.
    if catalog not in ("", LAKE) or schema not in ("", "main", LAKE):
        raise refused(
            f"{'.'.join(filter(None, (catalog, schema, name)))} is not a table of this lake",
            at=item,
        )
    if _NO_TABLE_NAME.search(name):
        raise refused("a file, URL or path is not a table of this lake", at=item)
    # `main` names the schema of the engine's own views as well, so it does not tell theirs from the lake's tables.
    if schema in ("", "main") and not catalog and name in rules.system_views:
        raise refused(
            f"{name} describes the engine",
            "use SHOW TABLES, DESCRIBE or information_schema.columns",
            at=item,
        )


def _check_moment(item: Mapping[str, object]) -> None:
    # The engine has the catalog of one snapshot: it would say that another does not exist, though it does.
    if "at_clause" in item:
        raise refused(
            "AT (VERSION or TIMESTAMP) is not allowed",
            "give snapshot_id or snapshot_time in the request",
            at=item,
        )


def _check_show(item: Mapping[str, object]) -> None:
    if "query" not in item and (
        str(item.get("table_name")) not in _SHOWN
        or item.get("catalog_name")
        or item.get("schema_name")
    ):
        raise refused(
            "this SHOW is not allowed", "use SHOW TABLES, SHOW ALL TABLES or DESCRIBE", at=item
        )


def _check_call(item: Mapping[str, object], is_table: bool, rules: Rules) -> None:
    name = str(item["function_name"]).lower()
    if name in REFUSED_FUNCTIONS:
        reason = REFUSED_FUNCTIONS[name]
        raise refused(f"the function {name} is not allowed: {reason}", at=item)
    if is_table and name not in TABLE_FUNCTIONS:
        allowed = "allowed table functions: " + ", ".join(sorted(TABLE_FUNCTIONS))
        raise refused(f"the table function {name} is not allowed", allowed, at=item)
    if not is_table and name not in rules.functions:
        raise refused(
            f"the function {name} is not known or not allowed",
            "use DuckDB's built-in scalar, aggregate and window functions",
            at=item,
        )


def _calls(tree: object) -> Iterator[tuple[dict[str, object], bool]]:
    """Every function call, and whether it stands for a table."""
    tables = {
        id(item["function"])
        for item in _dicts(tree)
        if item.get("type") == "TABLE_FUNCTION" and "class" not in item and "function" in item
    }
    for item in _dicts(tree):
        if "function_name" in item:
            yield item, id(item) in tables


def _dicts(tree: object) -> Iterator[dict[str, object]]:
    """All objects of the tree; without recursion, since a statement may be nested deeper than Python's stack."""
    todo = [tree]
    while todo:
        item = todo.pop()
        if _is_dict(item):
            yield item
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)


def _is_dict(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)
