"""Sphinx: pages in MyST Markdown, furo as theme. The build runs with -W: a warning is an error."""

from __future__ import annotations

from importlib.metadata import version as installed_version

import click
from sphinx.application import Sphinx

project = "rsq"
author = "the rsq authors"
copyright = "the rsq authors"
release = version = installed_version("rsq")

extensions = ["myst_parser", "sphinx_click"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # links such as [leases](workers.md#leases) are checked
smartquotes_action = "qe"  # quotes and ellipses, but --wait keeps its dashes

html_theme = "furo"
html_title = f"rsq {release}"


def setup(app: Sphinx) -> None:
    app.connect("sphinx-click-process-description", _examples_as_code)


def _examples_as_code(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """The example in a command's help comes as lines that begin with a bar: make it a code block."""
    shown: list[str] = []
    for line in lines:
        if line == "| Example:":
            shown += ["Example:", "", ".. code-block:: sh", ""]
        else:
            shown.append(f"   {line[1:].strip()}" if line.startswith("|") else line)
    lines[:] = shown
