"""MySQL and MariaDB hold "A" and "a" for the same, unless a column is told otherwise."""

from __future__ import annotations

from typing import Any

from django.db import migrations

EXACT = "ALTER TABLE rsq_inbox MODIFY {0} varchar(255) COLLATE utf8mb4_bin NOT NULL"


def tell_case_apart(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "mysql":
        for column in ("scope", "`key`"):
            schema_editor.execute(EXACT.format(column))


class Migration(migrations.Migration):
    dependencies = [("rsq_inbox", "0001_initial")]

    operations = [migrations.RunPython(tell_case_apart, migrations.RunPython.noop, elidable=False)]
