"""The table of marks, the same as `rsq.contrib.inbox.sqlalchemy.inbox_table` declares."""

from __future__ import annotations

from datetime import datetime

from django.db import models

from rsq.contrib.inbox.mark import MAX_LENGTH


class Mark(models.Model):
    """One call whose effect is done.

    scope, key    task name and task id, unless the caller said otherwise
    processed_at  when the mark was made
    result        what `once` keeps, packed by `rsq.codec`; NULL for `first_time`
    """

    pk = models.CompositePrimaryKey("scope", "key")
    scope: models.CharField[str, str] = models.CharField(max_length=MAX_LENGTH)
    key: models.CharField[str, str] = models.CharField(max_length=MAX_LENGTH)
    processed_at: models.DateTimeField[datetime, datetime] = models.DateTimeField(db_index=True)
    result: models.BinaryField[bytes | memoryview | None, bytes | memoryview | None] = models.BinaryField(null=True)

    class Meta:
        db_table = "rsq_inbox"
        default_permissions = ()
