"""Other task queues, measured as rsq is. Each script runs in the virtualenv of its peer and imports nothing of rsq."""
