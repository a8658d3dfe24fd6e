"""The app that compose.yaml runs. RSQ_URL says where its server is."""

from __future__ import annotations

from rsq import App, crontab

app = App("example")


@app.task
def greet(name: str) -> str:
    return f"hello, {name}"


app.schedule = {
    "every minute": {"task": "tasks.greet", "schedule": crontab("* * * * *", tz="Europe/Paris"), "args": ("clock",)},
}
