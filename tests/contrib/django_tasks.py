"""The app that worker processes load in the tests of the inbox for Django. Importing it sets Django up, once.

RSQ_TEST_DATABASES: the setting DATABASES, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import django
from django.conf import settings
from django.db import connections, transaction

from rsq import App, Task
from rsq.contrib.inbox.django import first_time, once
from tests.integration.tasks import journal

DATABASES = "RSQ_TEST_DATABASES"

settings.configure(
    DATABASES=json.loads(os.environ[DATABASES]), INSTALLED_APPS=["rsq.contrib.inbox.django"], USE_TZ=True
)
django.setup()

app = App("django-inbox", task_defaults={"retry_backoff": 0.05})


def pay(using: str = "default") -> None:
    """The effect."""
    with connections[using].cursor() as cursor:
        cursor.execute("INSERT INTO payments (cents) VALUES (100)")


@app.task(bind=True)
def pay_and_die(self: Task[..., Any], using: str) -> str:
    """The first run is killed after the database's commit and before rsq's."""
    with transaction.atomic(using):
        first = first_time(using=using)
        if first:
            pay(using)
    journal("paid" if first else "seen", self.request.crashes)
    if self.request.crashes == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@app.task
def pay_invoice(invoice: str, using: str) -> bool:
    """Goes by a name of its own: all calls together pay once."""

    def effect() -> str:
        pay(using)
        return own

    own = os.urandom(8).hex()
    with transaction.atomic(using):
        return once(effect, key=invoice, using=using) == own
