"""`rsq demo`: the example to read first (`tasks.py`), and the run that proves it (`run.py`)."""
