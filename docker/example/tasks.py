"""The app that compose.yaml runs. RSQ_URL says where its server is."""

from __future__ import annotations

from rsq import App

app = App("example")


@app.task
def greet(name: str) -> str:
    return f"hello, {name}"
