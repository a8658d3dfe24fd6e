"""The command line: flags become calls, values become tables. The only place that prints."""
