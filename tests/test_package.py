"""What is shipped: the metadata, the files in the wheel, the script of the checks."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_file_that_is_not_python_goes_into_the_wheel(metadata: configparser.ConfigParser) -> None:
    patterns = metadata["options.package_data"]
    files = [path for path in (ROOT / "rsq").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {path.suffix for path in files} >= {".lua", ".typed"}
    for path in files:
        package = path.parent
        while not (package / "__init__.py").exists():
            package = package.parent
        shipped = patterns.get(".".join(package.relative_to(ROOT).parts), "").split()
        assert any(fnmatch(str(path.relative_to(package)), pattern) for pattern in shipped), path


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "rsq").rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_what_the_core_needs_is_bounded(metadata: configparser.ConfigParser) -> None:
    needed = metadata["options"]["install_requires"].split()
    assert {re.split(r"[^a-z]", each)[0] for each in needed} == {"redis", "click", "msgpack", "croniter"}
    assert all(re.search(r">=[\d.]+,<\d+$", each) for each in needed)
    assert metadata["options"]["python_requires"] == ">=3.10"
    assert {"embedded", "dev", "docs"} <= {*metadata["options.extras_require"]}


def test_the_oldest_versions_are_those_that_are_tested(metadata: configparser.ConfigParser) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    tested = dict(line.split("==") for line in tox["testenv:lowest"]["deps"].split())
    extras = metadata["options.extras_require"]
    allowed = " ".join(
        [metadata["options"]["install_requires"], *(extras[e] for e in ("sqlalchemy", "django", "reload"))]
    )
    floors = dict(each.partition(",")[0].split(">=") for each in allowed.split())
    assert tested.keys() == floors.keys()
    for name, floor in floors.items():
        assert f"{tested[name]}.0.0".startswith(f"{floor}."), name
        assert set(tested[name].removeprefix(floor)) <= {".", "0"}, f"{name}: {tested[name]} is not the oldest"


def test_the_checks_can_be_read_by_the_shell() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    subprocess.run([bash, "-n", ROOT / ".ci" / "run"], check=True, timeout=60)
