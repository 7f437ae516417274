from __future__ import annotations

import re

import pytest

from duckmesh_runtime import sql
from duckmesh_runtime.errors import Corrupt

# DuckLake repeats a commit whose error text holds one of these (docs/architecture.md, Consistency).
REPEATED = re.compile(r"unique|primary key|conflict|concurrent", re.IGNORECASE)


def test_migrations_are_numbered_without_gaps_up_to_the_constant() -> None:
    numbers = [each.number for each in sql.migrations()]

    assert numbers == list(range(1, sql.MIGRATION + 1))


def test_a_fresh_database_needs_all_in_order() -> None:
    assert sql.pending({}) == sql.migrations()


def test_what_was_applied_is_not_pending() -> None:
    first, *rest = sql.migrations()

    assert list(sql.pending({first.number: first.checksum})) == rest


def test_an_edited_migration_is_named() -> None:
    first = sql.migrations()[0]

    with pytest.raises(Corrupt, match=first.name):
        sql.pending({first.number: "other"})


def test_a_newer_release_s_numbers_are_left_alone() -> None:
    applied = {each.number: each.checksum for each in sql.migrations()} | {9999: "x"}

    assert not sql.pending(applied)


def test_no_message_of_a_trigger_makes_ducklake_repeat_the_commit() -> None:
    messages = [
        found
        for each in sql.migrations()
        for found in re.findall(r"RAISE EXCEPTION '([^']*)'", each.text)
    ]

    assert messages
    assert not [message for message in messages if REPEATED.search(message)]
