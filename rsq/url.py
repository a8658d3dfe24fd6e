"""What can be said of a URL of the server without the client library: its kind, and how it is shown."""

from __future__ import annotations

import re

from rsq.errors import SettingsError

KINDS = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "embedded")

# What may be shown. Whatever does not look like this might be a password that was not quoted.
_HOST_SHOWN = r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_HARMLESS = re.compile(
    r"(?P<scheme>[a-z+]{1,20}://)(?:[^?#]*(?P<at>@))?"
    rf"(?P<place>{_HOST_SHOWN}(?:,{_HOST_SHOWN})*(?:/[\w.%-]*)*|/[^?#@]*)?"
    r"(?P<query>[?#][^@]*)?"
)


def redacted(url: str) -> str:
    """The URL as logs and errors may show it: scheme, host, port, database or path, and nothing else."""
    found = _HARMLESS.fullmatch(url)
    if not found:
        scheme, mark, _ = url.partition("://")
        return f"{scheme}://***" if mark and scheme in KINDS else "***"
    return f"{found['scheme']}{'***@' if found['at'] else ''}{found['place'] or ''}{'?***' if found['query'] else ''}"


def check_kind(url: str) -> None:
    """Raises SettingsError for a URL that leads to no server that rsq can use, whatever else it says."""
    scheme, mark, _ = url.partition("://")
    if not (mark and scheme in KINDS) and not url.startswith("embedded:"):
        raise SettingsError(
            f"URL {redacted(url)!r} cannot be used: it starts with redis://, rediss://, unix://, redis+sentinel://, "
            "rediss+sentinel://, redis+cluster://, rediss+cluster:// or embedded://"
        )
