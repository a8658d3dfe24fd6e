"""`@task`, which names no app: to which app its tasks belong. Each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.servers import Server

pytest_plugins = ["pytester"]

Run: TypeAlias = Callable[..., str]

LIBRARY = """
from rsq import task

@task(queue="mail", max_retries=5)
def send(to):
    return f"sent to {to}"
"""

SHOP = """
import library
from rsq import App
app = App("shop", namespace="shop", task_defaults={"autoretry_for": (), "max_retries": 1})
app.routes = {"library.bare": "routed"}

@app.task
def own(to):
    return library.send.delay(to).id
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs code beside the two modules, in a process of its own; gives what it prints."""
    (tmp_path / "library.py").write_text(LIBRARY)
    (tmp_path / "shop.py").write_text(SHOP)

    def run(code: str, *, failing: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode != 0) == failing, done.stderr
        return done.stderr if failing else done.stdout

    return run


def test_the_first_app_that_is_made_has_them(run: Run) -> None:
    run(
        """
        import rsq
        from library import send
        assert send.app is rsq.default_app and "library.send" in rsq.default_app.tasks
        import shop
        assert send.app is shop.app and shop.app.tasks["library.send"] is send
        assert "library.send" not in rsq.default_app.tasks
        assert (send.policy.autoretry_for, send.policy.max_retries) == ((), 5), "task_defaults hold, options go before"

        @rsq.task(name="library.bare")
        def bare(): ...
        assert bare.app is shop.app and shop.app.tasks["library.bare"] is bare
        assert bare.max_retries == 1
        assert bare.message()[0].queue == "routed"

        second = rsq.App("second")
        assert send.app is bare.app is shop.app
        assert shop.app.queues() == ["default", "mail", "routed"]
        """
    )


def test_an_app_may_be_chosen(run: Run) -> None:
    run(
        """
        import rsq, shop
        from library import send
        second = rsq.App("second", task_defaults={"priority": 3})
        second.set_default()
        assert send.app is second and send.options.priority == 3 and send.policy.autoretry_for == (Exception,)
        assert set(shop.app.tasks) == {"shop.own"}
        third = rsq.App("third")
        rsq.default_app.set_default()
        assert send.app is rsq.default_app
        """
    )


def test_the_app_that_is_named_with_A_has_them(run: Run) -> None:
    run(
        """
        import rsq
        from rsq.loader import load_app
        first = rsq.App("first")
        app = load_app("shop")
        import library
        assert app.name == "shop" and library.send.app is app and "library.send" in app.tasks
        """
    )


def test_a_module_with_nothing_but_such_tasks_names_their_app(run: Run) -> None:
    run(
        """
        import rsq
        from rsq.loader import load_app
        assert load_app("library") is rsq.default_app
        """
    )
    run(
        """
        from rsq.loader import load_app
        import shop
        assert load_app("library") is shop.app
        """
    )


def test_options_that_do_not_go_together_are_said_where_the_app_is_made(run: Run) -> None:
    said = run(
        """
        import rsq
        @rsq.task(name="a", soft_time_limit=60)
        def a(): ...
        rsq.App("shop", task_defaults={"time_limit": 30})
        """,
        failing=True,
    )
    assert "InvalidTask: a in app 'shop': soft_time_limit (60 s) must be below time_limit (30 s)" in said


def test_two_functions_under_one_name(run: Run) -> None:
    said = run(
        """
        import rsq
        @rsq.task(name="shop.own")
        def other(): ...
        import shop
        """,
        failing=True,
    )
    assert "DuplicateTask: two functions are registered as 'shop.own'" in said


def test_they_move_together_or_not_at_all(run: Run) -> None:
    run(
        """
        import rsq
        first = rsq.App("first")

        @rsq.task(name="x")
        def x(): ...

        @rsq.task(name="y")
        def y(): ...

        second = rsq.App("second")

        @second.task(name="y")
        def other(): ...

        try:
            second.set_default()
        except rsq.errors.DuplicateTask:
            assert x.app is y.app is first and first.tasks == {"x": x, "y": y} and second.tasks == {"y": other}
        else:
            raise AssertionError("two tasks of one name")
        """
    )


def test_a_worker_of_the_project_runs_them(run: Run, server: Server) -> None:
    """The web process imports the app, the worker is started with -A: both on the server of the app, not of RSQ_URL."""
    said = run(
        f"""
        import os
        os.environ["RSQ_URL"] = "redis://127.0.0.1:1"
        import shop
        shop.app.configure(url={server.url!r})
        from library import send
        with shop.app.testing.worker(url={server.url!r}) as worker:
            print(send.delay("you").get(timeout=60))
            inner = shop.own.delay("me").get(timeout=60)
            print(send.AsyncResult(inner).get(timeout=60))
        """
    )
    assert said.splitlines() == ["sent to you", "sent to me"]


class TestFixtures:
    def test_follow_the_only_app(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(library=LIBRARY, shop=SHOP)
        pytester.makepyfile(
            """
            import shop, library
            def test_eager(rsq_app, rsq_eager):
                assert rsq_app is shop.app
                assert library.send.delay("you").get() == "sent to you"
                assert len(shop.own.delay("me").get()) == 32
            """
        )
        pytester.runpytest_subprocess().assert_outcomes(passed=1)

    def test_refuse_where_there_are_several(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            shop=SHOP, library=LIBRARY, bank=SHOP.replace('"shop"', '"bank"').replace("routed", "other")
        )
        pytester.makepyfile(
            """
            import pytest, shop, bank
            def test_refused(rsq_eager): ...
            @pytest.mark.parametrize("app", [shop.app, bank.app])
            def test_chosen(app, request):
                app.set_default()
                assert request.getfixturevalue("rsq_app") is app
            """
        )
        result = pytester.runpytest_subprocess()
        result.assert_outcomes(errors=1, passed=2)
        result.stdout.fnmatch_lines(["*cannot tell which app is under test, 'shop' or bank.app: override it*"])

    def test_refuse_an_app_that_comes_too_late(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(library=LIBRARY, shop=SHOP.replace("import library", ""))
        pytester.makepyfile(
            """
            def test_late(rsq_eager):
                import shop
                shop.own.delay("you")
            """
        )
        result = pytester.runpytest_subprocess()
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["E*SettingsError: App 'shop' was made while a test runs on the app of*"])

    def test_an_app_of_a_test_takes_no_tasks_away(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(library=LIBRARY)
        pytester.makepyfile(
            """
            import rsq
            from library import send
            def test_other(rsq_eager):
                rsq.App("other")
                assert send.app is rsq.default_app
                assert send.delay("you").get() == "sent to you"
            """
        )
        pytester.runpytest_subprocess().assert_outcomes(passed=1)
