"""Streams of events as sources of calls: how they are declared, and how they are read. What an event is stands in
`rsq.calls.source`, and a task of one runs like any other."""
