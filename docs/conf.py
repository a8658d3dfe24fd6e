"""Sphinx: pages in MyST Markdown, furo as theme. The build runs with -W: a warning is an error."""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version

import click
from sphinx.application import Sphinx

project = "rsq"
author = "the rsq authors"
copyright = "the rsq authors"
release = version = installed_version("rsq")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # links such as [leases](workers.md#leases) are checked
smartquotes_action = "qe"  # quotes and ellipses, but --wait keeps its dashes

autodoc_member_order = "bysource"
default_role = "code"  # what stands between single backquotes in a docstring

html_theme = "furo"
html_title = f"rsq {release}"


# ``name  what it is``, as docstrings list parameters, fields and errors; a name of that kind is short.
_COLUMNS = re.compile(r"(\S(?:.{0,40}?\S)?) {2,}(\S.*)")
_LITERAL = re.compile(r"(``.*?``|`.*?`)")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _columns_as_lists)
    app.connect("sphinx-click-process-description", _examples_as_code)


def _columns_as_lists(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text in two columns: make it reStructuredText, with a list for the columns."""
    shown: list[str] = []
    text: list[str] = []  # lines of a paragraph, which is a name in the first column where an indented line follows
    for line in [*lines, ""]:
        found = _COLUMNS.fullmatch(line)
        indented = line.startswith(" ")
        if indented and text:
            shown += ["", _escaped(" ".join(text))]
            text = []
        elif not line or found:
            shown += ["", *map(_escaped, text), ""]
            text = []
        if found:
            shown += [f"``{found[1]}``", f"   {_escaped(found[2])}"]
        elif indented:
            shown.append(f"   {_escaped(line.strip())}")
        elif line:
            text.append(line)
    lines[:] = shown


def _escaped(text: str) -> str:
    """Stars and bars mean nothing in a docstring."""
    parts = _LITERAL.split(text)
    return "".join(part if number % 2 else re.sub(r"([*|_])", r"\\\1", part) for number, part in enumerate(parts))


def _examples_as_code(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """The example in a command's help comes as lines that begin with a bar: make it a code block."""
    shown: list[str] = []
    for line in lines:
        if line == "| Example:":
            shown += ["Example:", "", ".. code-block:: sh", ""]
        else:
            shown.append(f"   {line[1:].strip()}" if line.startswith("|") else line)
    lines[:] = shown
