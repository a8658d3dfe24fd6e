"""The benchmarks' own parts: who is compared with whom, the picture, the tables of the docs, the scenarios."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

import rsq
from benchmarks import docs, pairs
from rsq.bench import peers
from rsq.bench.events import EVENTS
from rsq.bench.flows import FLOWS
from rsq.bench.growth import GROWTH, RESIDENT
from rsq.bench.outputs import OUTPUTS
from rsq.bench.peers import OURS, OURS_OF_FLOWS, PEERS, PLAIN, SCENARIO, chosen, find_scripts, install, side_by_side
from rsq.bench.picture import PANELS, draw
from rsq.bench.report import Figure, Sample, to_json
from rsq.bench.rig import Rig
from rsq.bench.scenarios import SCENARIOS
from rsq.cli.main import main
from rsq.errors import SettingsError

SVG = "{http://www.w3.org/2000/svg}"
ABOUT = {
    "server": "redis 7",
    "transport": "tcp",
    "python": "3.11",
    "processors": 2,
    "load": 0.5,
    "repetitions": 3,
    "began": "2026-01-02T03:04:05",
    "peers": ["huey 3"],
    "trouble": ["arq: hangs"],
}


def figures() -> list[Figure]:
    """rsq ten times as fast as huey, and half as fast as its floor."""
    made = []
    for what, (scenario, name) in OURS.items():
        waits = what.startswith("round trip")
        unit, better = ("ms", "less") if waits else ("tasks/s", "more")
        value, floor, other = (1.0, 0.5, 10.0) if waits else (50_000.0, 100_000.0, 5000.0)
        made.append(Figure(scenario, name, unit, better, [value], [floor]))  # type: ignore[arg-type]
        made.append(Figure(SCENARIO, f"huey: {what}", unit, better, [other]))  # type: ignore[arg-type]
    made.append(Figure("backlog", "drain rate", "tasks/s", "more", [90.0], [100.0]))
    return made


def test_everyone_stands_in_one_row() -> None:
    table = side_by_side(figures())
    assert list(table) == list(OURS)
    assert table["drain, results kept"] == {"rsq": 50_000.0, "bare redis-py": 100_000.0, "huey": 5000.0}
    assert table["round trip p50"] == {"rsq": 1.0, "bare redis-py": 0.5, "huey": 10.0}


def run_of(rate: float, cpu_s: float) -> list[Figure]:
    return [
        Figure("drain", "results kept, 1 at work", "tasks/s", "more", [rate]),
        Figure("drain", "results kept: worker CPU for 1,000", "s", "less", [cpu_s]),
    ]


def test_a_pair_is_compared_with_itself_and_less_than_one_is_worse() -> None:
    runs = [
        (run_of(100, 0.10), run_of(50, 0.05)),
        (run_of(10, 0.4), run_of(12, 0.5)),
        (run_of(10, 0.4), run_of(11, 0.5)),
    ]
    rate, cpu = pairs.rows(runs)
    assert (rate.base, rate.new, rate.ratio) == (10, 12, 1.1)
    assert (cpu.base, cpu.new, cpu.ratio) == (0.4, 0.5, 0.8)
    _, first, second = pairs.table([rate, cpu], 0.97).splitlines()
    assert first.endswith("ok")
    assert second.endswith("WORSE")


def test_our_figures_exist_under_the_names_that_are_compared() -> None:
    source = "".join(path.read_text() for path in (Path(rsq.__file__).parent / "bench").glob("scenarios.py"))
    assert {scenario for scenario, _ in OURS.values()} <= set(SCENARIOS)
    assert set(PANELS) <= set(OURS)
    assert 'f"results {kind}, {children} at work"' in source


def test_the_picture_is_an_svg_with_a_bar_for_each() -> None:
    root = ET.fromstring(draw(side_by_side(figures())))
    assert root.tag == f"{SVG}svg"
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect")]
    assert len(widths) == 3 * len(PANELS)
    # The best comes first: the longest bar where more is better, the shortest for a round trip.
    assert widths[:3] == sorted(widths[:3], reverse=True)
    assert widths[-3:] == sorted(widths[-3:])
    assert "prefers-color-scheme:dark" in "".join(root.itertext())


def test_a_picture_of_nothing_is_still_one() -> None:
    assert ET.fromstring(draw({})).tag == f"{SVG}svg"


def test_the_docs_take_their_tables_from_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, picture, run = tmp_path / "page.md", tmp_path / "_static" / "peers.svg", tmp_path / "run.json"
    page.write_text(
        "a\n" + "".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in ("goals", "peers")) + "z"
    )
    run.write_text(json.dumps(to_json(ABOUT, figures())))
    monkeypatch.setattr(docs, "PAGE", page)
    monkeypatch.setattr(docs, "PICTURE", picture)
    docs.write([run])
    once = page.read_text()
    docs.write([run])
    assert page.read_text() == once
    assert "old" not in once
    assert "| huey | 5,000 |" in once
    (row,) = (line for line in once.splitlines() if line.startswith("| drain, one process, results kept |"))
    assert [cell.strip() for cell in row.strip("|").split("|")[1:]] == [
        "50,000 tasks/s",
        "100,000",
        "0.50",
        ">= 0.45 x",
        "huey 5,000",
        "10.0 x",
        ">= 10 x",
        "yes",
    ]
    assert picture.read_text().startswith("<svg")


def test_flows_stand_beside_those_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, run = tmp_path / "page.md", tmp_path / "run.json"
    page.write_text("".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in ("peers", "flow-peers")))
    made = [Figure(*key, "tasks/s", "more", [9000.0], [20_000.0]) for key in OURS_OF_FLOWS.values()]
    made += [Figure(SCENARIO, f"huey: {name}", "tasks/s", "more", [800.0]) for name in OURS_OF_FLOWS]
    run.write_text(json.dumps(to_json(ABOUT, made)))
    monkeypatch.setattr(docs, "PAGE", page)
    monkeypatch.setattr(docs, "PICTURE", tmp_path / "_static" / "peers.svg")
    docs.write([run])
    assert "| rsq | 9,000 | 9,000 |\n" in page.read_text()
    assert "| huey | 800 | 800 |\n" in page.read_text()
    assert page.read_text().count("old") == 1
    assert not docs.PICTURE.exists()


def test_a_long_run_is_drawn_and_every_fifth_step_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, run = tmp_path / "page.md", tmp_path / "run.json"
    page.write_text("<!-- table: growth -->\nold\n<!-- end -->\n")
    steps = [Figure("long-run", RESIDENT.format(n * 100_000), "MB", "less", [40.0], [40.0]) for n in range(1, 21)]
    run.write_text(json.dumps(to_json(ABOUT, steps)))
    monkeypatch.setattr(docs, "PAGE", page)
    monkeypatch.setattr(docs, "PICTURE", tmp_path / "_static" / "peers.svg")
    docs.write([run])
    assert re.findall(r"after (\S+) tasks", page.read_text()) == [
        "100,000",
        "500,000",
        "1,000,000",
        "1,500,000",
        "2,000,000",
    ]
    (line,) = ET.fromstring((tmp_path / "_static" / docs.MEMORY).read_text()).iter(f"{SVG}polyline")
    heights = {point.split(",")[1] for point in line.attrib["points"].split()}
    assert (len(line.attrib["points"].split()), len(heights)) == (20, 1)


def test_a_table_that_no_run_fills_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, run = tmp_path / "page.md", tmp_path / "run.json"
    about = "- drain: old\n- growth, cluster: kept\n"
    page.write_text(f"<!-- table: growth -->\nold\n<!-- end -->\n<!-- table: about -->\n{about}<!-- end -->\n")
    run.write_text(json.dumps(to_json(ABOUT, [Figure("drain", "x", "s", "less", [1.0])])))
    monkeypatch.setattr(docs, "PAGE", page)
    docs.write([run])
    assert page.read_text().count("old") == 1
    assert "- growth, cluster: kept\n" in page.read_text()
    assert "a load of 0.5 from other work" in page.read_text()


def test_the_page_has_the_tables_that_are_written() -> None:
    page = docs.PAGE.read_text()
    assert re.findall(r"<!-- table: (\S+) -->", page) == [
        "goals",
        "about",
        "peers",
        "flows",
        "flow-peers",
        "cluster",
        "growth",
    ]
    assert page.count("<!-- end -->") == 7
    assert docs.PICTURE.is_file()
    assert (docs.PICTURE.parent / docs.MEMORY).is_file()


# -- peers


def test_each_peer_has_its_script() -> None:
    scripts = {path.stem for path in find_scripts().glob("*.py")} - {"__init__", "__main__", "counting"}
    assert scripts == {name.replace("-", "_") for name in PEERS}


def test_the_scripts_import_nothing_of_rsq() -> None:
    for path in find_scripts().glob("*.py"):
        assert not re.search(r"^\s*(from|import) rsq\b", path.read_text(), re.MULTILINE), path.name


def test_peers_are_chosen_by_name() -> None:
    assert chosen("all") == list(PEERS)
    assert chosen("huey, rq") == ["huey", "rq"]
    with pytest.raises(SettingsError, match="'resque'"):
        chosen("resque")


def test_without_a_checkout_peers_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rsq, "__file__", str(tmp_path / "site-packages" / "rsq" / "__init__.py"))
    done = CliRunner().invoke(main, ["bench", "--peers", "huey", "--peers-dir", str(tmp_path)])
    assert done.exit_code != 0
    assert "needs a checkout" in done.output
    assert len(done.output.splitlines()) == 1


def test_a_peer_that_cannot_be_installed_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "huey").write_text("no room for a virtualenv")
    trouble: list[str] = []
    assert list(install(["huey"], tmp_path, trouble)) == []
    assert len(trouble) == 1
    assert trouble[0].startswith("huey: cannot be installed: ")


def test_a_peer_that_fails_is_reported_and_what_it_did_is_kept(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        """echo '{"figure": "round trip p50", "unit": "ms", "better": "less", "value": 2.5}'\n"""
        """echo '{"figure": "drain", "error": "it broke"}'\n"""
        "echo 'its last words' >&2\nexit 3\n"
    )
    python.chmod(0o755)
    trouble: list[str] = []
    with Rig(scale=0.001) as rig:
        peer = peers.Peer("huey", python, tmp_path / "peers", "huey 3")
        assert list(peer.measure(rig, [PLAIN], trouble)) == [Sample("huey: round trip p50", "ms", "less", 2.5)]
    assert sorted(trouble) == ["huey: drain: it broke", "huey: its last words"]


# -- scenarios


def test_where_durations_differ_hardly_anything_is_handed_back() -> None:
    """The goal is two in a hundred. Once a child fetched again what it had just handed back, for as long as it ran."""
    with Rig(scale=0.5) as rig:
        measured = {sample.name: sample.value for sample in SCENARIOS["mixed"](rig)}
    assert measured["handed back and fetched again"] < 50


# -- outputs


def test_what_was_there_takes_nothing_from_what_is_measured_next() -> None:
    """Else memory that is freed meanwhile counts as less than nothing for what is stored."""
    with Rig(scale=0.01) as rig:
        rig.call("EVAL", "for i = 1, 300000 do redis.call('HSET', KEYS[1], i, i) end", 1, "many")
        rig.empty()
        assert rig.info("memory")["lazyfree_pending_objects"] == "0"


def test_the_scenario_of_outputs_runs() -> None:
    with Rig(scale=0.01) as rig:
        samples = {sample.name: sample.value for sample in OUTPUTS["outputs"](rig)}
    assert all(value > 0 for value in samples.values())
    assert samples["100 watchers: connections"] == 1


# -- flows and streams


@pytest.mark.parametrize("name", [*FLOWS, *EVENTS])
def test_each_scenario_of_flows_and_streams_runs(name: str) -> None:
    with Rig(scale=0.002) as rig:
        samples = list((FLOWS | EVENTS)[name](rig))
    assert samples
    # So little may cost the server less time than it counts.
    assert all(sample.value > 0 for sample in samples if "server" not in sample.name)


# -- growth


@pytest.mark.parametrize("name", GROWTH)
def test_each_scenario_of_growth_runs(name: str) -> None:
    with Rig(scale=0.01) as rig:
        samples = list(GROWTH[name](rig))
    assert samples
    assert all(sample.value >= 0 for sample in samples)
