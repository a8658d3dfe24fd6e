"""The inbox for Django's ORM. Add ``"rsq.contrib.inbox.django"`` to INSTALLED_APPS, and run ``migrate``.

with transaction.atomic():
    if first_time():                     # inside a task: goes by its task id
        Payment.objects.create(...)
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from django.db import IntegrityError, connections, router, transaction
from django.utils import timezone

from rsq.contrib.inbox.mark import MarkName, mark_name, pack_result, unpack_result
from rsq.errors import SettingsError

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from rsq.contrib.inbox.django.models import Mark

T = TypeVar("T")


def first_time(*, key: str | None = None, scope: str | None = None, using: str | None = None) -> bool:
    """Mark the call as done, in this transaction. False: a transaction before has done so, and was committed.

    While another transaction holds the same mark, this waits for its end: True if that rolls back. Call it before
    anything else in the transaction.

    key     what is to happen once; default: the id of the running task
    scope   keys of different scopes are apart; default: the name of the running task, or '' for a key of your own
    using   alias of the database; default: what the routers say
    Raises  SettingsError: no key outside a task, or no transaction; what the database raises
    """
    marks = _marks(using)
    return _insert(marks, _name(marks, key, scope))


def once(effect: Callable[[], T], *, key: str | None = None, scope: str | None = None, using: str | None = None) -> T:
    """Call `effect` if this is the `first_time`, and give what it returned, now or then.

    effect  works in the same transaction. What it raises must roll that back
    Raises  as `first_time`; EncodeError for a result that cannot be kept; RsqError for a mark without one
    """
    marks = _marks(using)
    name = _name(marks, key, scope)
    mark = marks.filter(pk=name)
    if _insert(marks, name):
        value = effect()
        mark.update(result=pack_result(value))
        return value
    # A locking read sees what was committed last, even where the transaction reads from an older snapshot.
    packed = mark.select_for_update().values_list("result", flat=True).get()
    kept: T = unpack_result(None if packed is None else bytes(packed), name)
    return kept


def forget(older_than: timedelta, *, using: str | None = None) -> int:
    """Delete the marks that are older; gives their number. A call whose mark is gone would have its effect again."""
    deleted: int = _marks(using).filter(processed_at__lt=timezone.now() - older_than).delete()[0]
    return deleted


def _marks(using: str | None) -> QuerySet[Mark]:
    from rsq.contrib.inbox.django.models import Mark  # Django has no models before it is set up

    return Mark.objects.using(using or router.db_for_write(Mark))


def _name(marks: QuerySet[Mark], key: str | None, scope: str | None) -> MarkName:
    return mark_name(key, scope, empty_is_null=connections[marks.db].features.interprets_empty_strings_as_nulls)


def _insert(marks: QuerySet[Mark], name: MarkName) -> bool:
    """Whether the mark is new. A mark that is there already does not break the transaction."""
    if transaction.get_autocommit(marks.db):
        # A crash could leave a mark without its effect.
        raise SettingsError("the inbox needs a transaction: call it inside transaction.atomic()")
    try:
        with transaction.atomic(marks.db):
            marks.create(**name._asdict(), processed_at=timezone.now())
    except IntegrityError:
        # Of a trigger or a constraint that the inbox knows nothing of, too: only a mark that is there means "done
        # before". A locking read sees what was committed last, even where the transaction reads from an older snapshot.
        there = marks.filter(pk=name).select_for_update().values_list("scope", "key")
        if name not in list(there):
            raise
        return False
    return True
