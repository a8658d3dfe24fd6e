"""A call as data: what it carries, what may be asked of it, what follows from an attempt.

Decisions and values only, without I/O: nothing here knows the server, an app or a worker.
"""
