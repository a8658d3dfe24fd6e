"""How Django knows the app. Without a label of its own it would be called "django"."""

from __future__ import annotations

from django.apps import AppConfig


class InboxConfig(AppConfig):
    name = "rsq.contrib.inbox.django"
    label = "rsq_inbox"
    verbose_name = "rsq inbox"
