"""The small file by which a worker tells how it is. No server."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rsq.errors import SettingsError
from rsq.worker.health import ChildHealth, Health, HealthFile, all_health

WELL = Health("host-1-abcd", 1, "shop.tasks:app", "shop", "rsq", 100.0, 5.0, 100.0, 10.0, False, [])
CHILD = ChildHealth(7, True, 100.0, 0.0, 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"rsq-health-{os.getuid()}"


def test_what_is_written_is_read_by_others_and_ends_with_its_writer(folder: Path) -> None:
    """By a lock, so a process id that belongs to somebody else by now deceives nobody."""
    code = (
        "import sys, time\nfrom tests.worker.test_health_file import *\nimport tempfile\n"
        f"tempfile.tempdir = {str(folder.parent)!r}\n"
        f"HealthFile('gone').write(replace(WELL, worker_id='gone', pid={os.getpid()}))\n"
        "print('written', flush=True)\nsys.stdin.read()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, env=env) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == b"written\n"
        mine = HealthFile(WELL.worker_id)
        mine.write(WELL)
        assert {health.worker_id for health in all_health()} == {"gone", WELL.worker_id}
        p.kill()
        p.wait()
    assert list(all_health()) == [WELL]
    assert [path.name for path in folder.iterdir()] == [f"{WELL.worker_id}.health"]
    mine.remove()
    assert list(folder.iterdir()) == []


def test_two_workers_with_one_pid_have_a_file_each(folder: Path) -> None:
    """Each is process 1 of its own container."""
    files = [HealthFile(name) for name in ("a", "b")]
    for file, name in zip(files, "ab", strict=True):
        file.write(replace(WELL, worker_id=name))
    assert [health.worker_id for health in all_health()] == ["a", "b"]
    for file in files:
        file.remove()


def test_a_shorter_text_replaces_a_longer_one(folder: Path) -> None:
    file = HealthFile("a")
    file.write(replace(WELL, children=[CHILD] * 50))
    file.write(WELL)
    assert list(all_health()) == [WELL]
    (folder / "a.health").unlink()
    file.write(WELL)
    assert list(all_health()) == [WELL], "made again when somebody has removed it"
    file.remove()


def test_what_is_torn_or_foreign_is_skipped(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for name, text in {"torn": b"00000000 {", "empty": b"", "foreign": b"hello\n", "bin": b"\xff\xfe"}.items():
        (folder / f"{name}.health").write_bytes(text)
    (folder / "link.health").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.health")
    assert list(all_health()) == []


@pytest.mark.parametrize("made", ["others", "link", "file"])
def test_a_folder_that_somebody_else_may_have_made_is_refused(folder: Path, tmp_path: Path, made: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    if made == "others":
        folder.mkdir()
        folder.chmod(0o777)
    elif made == "link":
        folder.symlink_to(precious)
    else:
        folder.touch()
    with pytest.raises((SettingsError, OSError), match="rsq-health"):
        HealthFile("a").write(WELL)
    assert list(precious.iterdir()) == []


def test_no_link_is_followed(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(mode=0o700)
    (tmp_path / "precious").write_text("precious")
    (folder / "a.health").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="exists"):
        HealthFile("a").write(WELL)
    assert (tmp_path / "precious").read_text() == "precious"


def test_where_there_is_no_folder_nothing_is_made_or_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSQ_HEALTH_DIR", "/proc/nowhere")
    file = HealthFile("a")
    with pytest.raises(OSError, match="nowhere"):
        file.write(WELL)
    file.remove()
    assert list(all_health()) == []


@pytest.mark.parametrize(
    ("target", "namespace", "is_it"),
    [
        (None, None, True),
        ("shop.tasks:app", None, True),
        ("shop.tasks", None, True),
        ("shop.tasks:other", None, False),
        ("shop", None, False),
        (None, "rsq", True),
        ("shop.tasks:app", "other", False),
    ],
)
def test_whose_health_it_is(target: str | None, namespace: str | None, is_it: bool) -> None:
    assert WELL.is_of(target, namespace) is is_it


@pytest.mark.parametrize(
    ("child", "why"),
    [
        (CHILD, ""),
        (replace(CHILD, registered=False), "still starting"),
        (replace(CHILD, beat=0.0), "still starting"),
        (replace(CHILD, beat=80.0), "has fetched nothing for 20 s"),
        (replace(CHILD, beat=80.0, running=1), ""),
        (replace(CHILD, commit_beat=99.0), ""),
        (replace(CHILD, commit_beat=80.0), "has committed nothing for 20 s"),
        (replace(CHILD, commit_beat=80.0, running=1), "has committed nothing for 20 s"),
        (replace(CHILD, commit_beat=80.0, beat=81.0, running=1), ""),
    ],
)
def test_readiness_of_a_child(child: ChildHealth, why: str) -> None:
    problem = replace(WELL, children=[child]).why_not_ready(100.0)
    assert why in problem if why else problem == ""


@pytest.mark.parametrize(
    ("children", "why"),
    [
        ([], "it has no children"),
        ([replace(CHILD, registered=False)], "child 7 is still starting"),
        ([replace(CHILD, beat=0.0)] * 2, "child 7 is still starting"),
        ([CHILD, replace(CHILD, pid=8, registered=False)], ""),
        ([replace(CHILD, pid=8, beat=0.0), CHILD], ""),
        ([replace(CHILD, beat=80.0), replace(CHILD, pid=8, registered=False)], "child 7 has fetched nothing for 20 s"),
        ([CHILD, replace(CHILD, pid=8, commit_beat=80.0)], "child 8 has committed nothing for 20 s"),
    ],
)
def test_who_starts_beside_others_that_work_keeps_nobody_unready(children: list[ChildHealth], why: str) -> None:
    assert replace(WELL, children=children).why_not_ready(100.0) == why
