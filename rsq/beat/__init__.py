"""Schedules: what they are, how they are kept in Redis, and the beat that turns their slots into calls."""

from __future__ import annotations
