"""Finds the app that `-A` or RSQ_APP names."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any

from rsq.app import BaseApp, shared
from rsq.errors import RsqError, SettingsError
from rsq.task import Task

HOW = "name your app with -A module or -A module:attribute, or in RSQ_APP; for example: rsq -A shop.tasks:app worker"


def load_app(name: str | None) -> BaseApp:
    """The app of ``module:attribute`` or ``module``; None means RSQ_APP.

    Of a module it is the attribute ``app``, else its only App, else the app of its tasks. The tasks of `@task` belong
    to it from now on. The current directory can be imported from, as with ``python -m``.

    Raises SettingsError, in the user's terms, when there is no such thing; what the module itself raises while it is
    imported is named in it, with the place.
    """
    app = _find(name or os.environ.get("RSQ_APP"))
    app.set_default()
    return app


def _find(name: str | None) -> BaseApp:
    if not name:
        raise SettingsError(f"no app given: {HOW}")
    module_name, colon, attribute = name.partition(":")
    if not module_name or (colon and not attribute):
        raise SettingsError(f"{name!r} names no app: {HOW}")
    if os.sep in module_name or module_name.endswith(".py"):
        as_module = module_name.removesuffix(".py").strip(f".{os.sep}").replace(os.sep, ".")
        raise SettingsError(f"-A takes the name of a module, not a file: -A {as_module}{colon}{attribute}")
    with suppress(FileNotFoundError):  # the directory is gone: an app that is installed elsewhere needs none
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
    before = len(shared)
    module = _import(module_name)
    _let_rsq_log()
    apps = {id(value): value for value in vars(module).values() if isinstance(value, BaseApp)}
    if len({app.name for app in apps.values()}) < len(apps):
        raise SettingsError(
            f"{module_name} holds several apps of one name, which would take each other's schedules for their own: "
            "give each a name, as in App('shop')"
        )
    if attribute:
        return _attribute(module, attribute)
    app = getattr(module, "app", None)
    if isinstance(app, BaseApp):
        return app
    if len(apps) > 1:
        names = sorted(key for key, value in vars(module).items() if isinstance(value, BaseApp))
        raise SettingsError(f"{module_name} holds several apps: choose one, such as -A {module_name}:{names[0]}")
    if apps:
        return next(iter(apps.values()))
    of_tasks = {id(task.app): task.app for task in _tasks_in(module)}
    if len(shared) > before or id(shared.app) in of_tasks:
        return shared.app
    if len(of_tasks) == 1:
        (found,) = of_tasks.values()
        assert isinstance(found, BaseApp), "an app made the task"
        return found
    raise SettingsError(f"module {module_name!r} holds no App and no task: define one, or name another module with -A")


def need_real_threads() -> None:
    """Raises SettingsError: the app has replaced threads, so what rsq does beside a task would wait for its end."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        name = "gevent"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        name = "eventlet"
    else:
        return
    raise SettingsError(
        f"a worker needs real threads, and the app has {name} replace them: do not monkey-patch in a worker "
        "(-P threads and -P asyncio run many tasks in one process)"
    )


def _let_rsq_log() -> None:
    """`logging.config.dictConfig` of an app silences all loggers that it does not name, unless told otherwise."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "rsq" and isinstance(logger, logging.Logger):
            logger.disabled = False


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "the current directory, which is gone,"


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(missing + "."):
            raise SettingsError(
                f"there is no module {missing!r} (looked in {_here()} and the Python path): {HOW}"
            ) from None
        raise SettingsError(f"{name} cannot be imported: {_place(error)}: no module named {missing!r}") from error
    except RsqError as error:
        raise SettingsError(f"{name} cannot be imported: {error}") from error
    except SystemExit as error:
        raise SettingsError(
            f"{name} cannot be imported: {_place(error)}: it calls sys.exit({error.code!r}); "
            "put what only a script does below `if __name__ == '__main__':`"
        ) from error
    except Exception as error:
        raise SettingsError(f"{name} cannot be imported: {_place(error)}: {type(error).__name__}: {error}") from error


def _place(error: BaseException) -> str:
    """File and line where it was raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    trace = error.__traceback__
    place = "?"
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<frozen"):
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _attribute(module: ModuleType, path: str) -> BaseApp:
    found: object = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise SettingsError(f"{module.__name__!r} has no attribute {path!r}: {HOW}") from None
    if callable(found) and not isinstance(found, (BaseApp, Task)):
        try:
            found = found()
        except RsqError:
            raise
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}"
            raise SettingsError(f"{module.__name__}:{path} cannot make an app: {_place(error)}: {what}") from error
    if not isinstance(found, BaseApp):
        raise SettingsError(f"{module.__name__}:{path} is {type(found).__name__}, not an rsq.App: {HOW}")
    return found


def _tasks_in(module: ModuleType) -> list[Task[..., Any]]:
    return [value for value in vars(module).values() if isinstance(value, Task)]
