"""The house: a module imports only from floors below its own, or from its own floor without a circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rsq
from rsq.broker import scripts
from rsq.keys import GROUP, RELEASED
from rsq.states import ENDINGS, TRANSITIONS

ROOT = Path(rsq.__file__).parent

FLOORS = [
    {"errors", "states", "keys", "clock", "bell", "on_demand", "signals", "logs", "naming", "functions", "texts"},
    {"hints", "celery_names"},
    {"codec", "url"},
    {"settings"},
    {"remote"},
    {"calls"},
    {"broker"},
    {"home", "handles", "output", "result", "result_member", "result_set", "result_group"},
    {"canvas", "running", "task", "generator_task", "shared", "app", "loader", "pickling"},
    {"flow", "streams"},
    {"worker", "beat"},
    {"testing", "contrib"},
    {"face", "__init__"},
    {"demo", "bench"},
    {"cli"},
    {"__main__"},
]


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__") or "__init__"] = ast.parse(path.read_text())
    return found


MODULES = modules()

MAP = re.findall(r"^ {4}(\S.*)", rsq.__doc__ or "", re.MULTILINE)
"""The lines in the docstring of `rsq` that say where things are."""


def floor(module: str) -> int:
    top = module.partition(".")[0]
    return next(number for number, names in enumerate(FLOORS) if top in names)


def imports(tree: ast.Module) -> set[str]:
    """Full names of everything imported, at whatever depth, typing-only imports too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(tree: ast.Module) -> set[str]:
    """The modules of rsq among them, without the prefix."""
    found = set()
    for name in imports(tree):
        if name != "rsq" and not name.startswith("rsq."):
            continue
        name = name.removeprefix("rsq").removeprefix(".")
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name or "__init__")
    return found


def test_the_map_of_the_modules_is_whole() -> None:
    places = {place.strip("/") for line in MAP for place in line.split("  ")[0].split(", ")}
    assert {place.partition("/")[0] for place in places} == {name.partition(".")[0] for name in MODULES} - {
        "__init__",
        "__main__",
    }
    assert all((ROOT / place).exists() for place in places if "/" in place)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    assert {other for other in own_imports(MODULES[module]) if floor(other) > floor(module)} == set()


def test_there_is_no_circle() -> None:
    graph = {module: own_imports(tree) - {module} for module, tree in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_the_map_names_every_package_and_nothing_that_is_gone() -> None:
    shown = re.findall(r"^    (\S.*?)  +\S", rsq.__doc__ or "", re.MULTILINE)
    named = {name.strip("/").removesuffix(".py").replace("/", ".") for line in shown for name in line.split(", ")}
    assert named <= MODULES.keys()
    assert {module.partition(".")[0] for module in MODULES if "." in module} <= {n.partition(".")[0] for n in named}


def test_declaring_a_task_imports_no_redis() -> None:
    code = "import sys, rsq, shutil; rsq.App('x').task(shutil.which); sys.exit('redis' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_only_the_broker_imports_redis() -> None:
    users = {module for module, tree in MODULES.items() if any(n.partition(".")[0] == "redis" for n in imports(tree))}
    assert users
    # The floor of a benchmark is what bare redis-py does.
    assert {module for module in users if not module.startswith("broker.")} - {"bench.floor"} == set()


PRINTS = re.compile(
    r"print|pprint|click\.(echo\w*|secho|confirm|prompt|progressbar|pause|clear)|sys\.(__)?std(out|err)(__)?\.write\w*"
)


def test_one_module_prints() -> None:
    printers = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and PRINTS.fullmatch(ast.unparse(node.func))
    }
    assert printers == {"cli.out"}
    borrowed = {
        f"{node.module}.{alias.name}"
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not {name for name in borrowed if PRINTS.fullmatch(name) or name in ("sys.stdout", "sys.stderr")}


def test_each_transition_is_one_script() -> None:
    files = {path.stem for path in (ROOT / "broker" / "lua").glob("*.lua") if not path.stem.startswith("_")}
    assert files == {script.name for script in scripts.ALL} == set(TRANSITIONS)


def test_lua_and_python_agree_on_names() -> None:
    common = (ROOT / "broker" / "lua" / "_common.lua").read_text()
    assert f"local GROUP = '{GROUP}'" in common
    assert f"local RELEASED = '{RELEASED}'" in common


def test_lua_and_python_agree_on_the_ways_in_which_a_call_ends() -> None:
    ending = (ROOT / "broker" / "lua" / "_ending.lua").read_text()
    (ways,) = re.findall(r"local WAYS = \{(.*?)\}", ending, re.DOTALL)
    assert set(re.findall(r"(\w+) = 1", ways)) == set(ENDINGS)


def test_lua_and_python_agree_on_the_longest_block() -> None:
    from rsq.broker.worker_queue import LONGEST_BLOCK_MS

    assert f"local LONGEST_BLOCK_MS = {LONGEST_BLOCK_MS}\n" in (ROOT / "broker" / "lua" / "_ready.lua").read_text()


@pytest.mark.parametrize("script", scripts.ALL, ids=lambda script: script.name)
def test_each_script_says_what_it_takes_and_gives(script: scripts.Script) -> None:
    lines = (ROOT / "broker" / "lua" / f"{script.name}.lua").read_text().splitlines()
    assert lines[0].startswith(f"-- {script.name}: ")
    heads = [line[3:9] for line in lines if line.startswith("-- ")]
    assert {"KEYS  ", "ARGV  ", "out   "} <= set(heads)
