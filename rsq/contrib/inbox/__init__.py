"""Database effects that happen exactly once, though a task may run more than once.

A table of marks in the user's own database: one row for each call whose effect is done, written in the same
transaction as the effect. `rsq.contrib.inbox.sqlalchemy` and `rsq.contrib.inbox.django` have the same three functions:
`first_time`, `once`, `forget`. See docs/inbox.md.
"""
