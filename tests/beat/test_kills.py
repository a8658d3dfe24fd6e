"""The reckoning of `python -m tests.beat.kills`."""

from __future__ import annotations

from tests.beat.kills import lateness


def test_the_time_in_which_no_beat_lived_does_not_count() -> None:
    assert lateness(1000, 1300, []) == 300
    assert lateness(1000, 5000, [(500, 900), (900, 1100), (2000, 4500), (4900, 9000)]) == 1300
    assert lateness(1000, 1300, [(0, 2000)]) == 0
