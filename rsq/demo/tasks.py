"""The example: one app. `rsq demo` sends `index_file` every file of the standard library. `rsq demo --flow` has
`count_file` count each of them, and `summed` add up what came out, of each package and then of all.

With a worker (`rsq -A rsq.demo.tasks worker`) you can send it files of your own:

    >>> import os
    >>> from rsq.demo.tasks import index_file
    >>> index_file.delay(os.__file__).get(timeout=10)
    {'lines': 1127, 'functions': 59, 'classes': 4, 'imports': 28}
"""

from __future__ import annotations

import ast
import tokenize

from rsq import App

app = App("demo")


@app.task(
    max_retries=2,  # a file that cannot be read or parsed is tried three times; then it is a dead letter
    retry_backoff=0.1,  # seconds: the longest wait before the first retry; it doubles with each one
    dedupe_key="{path}",  # a path that was sent before does not run again
)
def index_file(path: str) -> dict[str, int]:
    """Count the lines, functions, classes and imports of a Python file."""
    with tokenize.open(path) as file:  # in the encoding that the file declares
        source = file.read()
    nodes: list[ast.AST] = [ast.parse(source, path)]
    for node in nodes:  # the list grows meanwhile; expressions hold nothing that is counted
        nodes += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
    return {
        "lines": len(source.splitlines()),
        "functions": sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "imports": sum(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes),
    }


@app.task(ignore_result=True)  # what follows gets its value all the same
def count_file(path: str) -> dict[str, int]:
    """`index_file` for one that counts as a bad file where it cannot be read or parsed."""
    try:
        return {"files": 1, "bad files": 0, **index_file(path)}
    except (OSError, SyntaxError, UnicodeError, ValueError):
        return {"files": 1, "bad files": 1, "lines": 0, "functions": 0, "classes": 0, "imports": 0}


@app.task
def summed(counts: list[dict[str, int]]) -> dict[str, int]:
    """The sum of counts, name by name."""
    return {name: sum(each[name] for each in counts) for name in counts[0]}
