"""How tasks and handles are pickled: by name and by id. What they mean is looked up in the process that loads them."""

from __future__ import annotations

import copyreg
import importlib
from typing import Any

from rsq.app import BaseApp, shared
from rsq.errors import SettingsError, UnknownTask
from rsq.handles import result_from_tuple
from rsq.result import AsyncResult
from rsq.result_group import GroupResult
from rsq.result_member import MemberResult
from rsq.result_set import ResultSet
from rsq.task import AsyncTask, Task
from rsq.url import redacted


def _reduced_task(task: Task[..., Any]) -> tuple[Any, ...]:
    return _task, (task.__module__, task.__qualname__, task.name)


def _task(module: str, path: str, name: str) -> Task[..., Any]:
    """The task of this name: where its function stands, else in the apps of that module, else in that of `@task`."""
    there = importlib.import_module(module)
    found: Any = there
    for part in path.split("."):
        found = getattr(found, part, None)
    apps = [value for value in vars(there).values() if isinstance(value, BaseApp)]
    for task in (found, *(app.tasks.get(name) for app in (*apps, shared.app))):
        if isinstance(task, Task) and task.name == name:
            return task
    raise UnknownTask(f"there is no task {name!r} in {module}, which this process has imported for it")


def _reduced_result(result: AsyncResult[Any]) -> tuple[Any, ...]:
    return _result, (result.as_tuple(), _place_of(result))


def _place_of(result: AsyncResult[Any]) -> tuple[str, str]:
    """Server, without its password, and namespace."""
    settings = result._client.settings
    return redacted(settings.url), settings.namespace


def _result(table: Any, place: tuple[str, str]) -> AsyncResult[Any]:
    """The handle, of the project's app. Raises SettingsError where that is on another server or namespace."""
    result: AsyncResult[Any] = result_from_tuple(table, shared.app)
    if (here := _place_of(result)) != place:
        raise SettingsError(
            f"the handle of {result.id} is of {place[0]}, namespace {place[1]}; the app {shared.app.name!r} of this "
            f"process has {here[0]}, {here[1]}: pass the id, and take AsyncResult(id) of the right app"
        )
    return result


def register() -> None:
    """Tell `pickle` and `copy`."""
    copyreg.pickle(Task, _reduced_task)
    copyreg.pickle(AsyncTask, _reduced_task)
    for kind in (AsyncResult, MemberResult, ResultSet, GroupResult):
        copyreg.pickle(kind, _reduced_result)
