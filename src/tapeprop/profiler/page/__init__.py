"""A profile as one HTML page that works offline: timeline, table, memory, roofline and graph.

The page is put together from the files beside this one: `page.html` is the frame, `page.css` the looks, the scripts of `SCRIPTS` run
as one, in that order. It asks the network for nothing, and its content security policy, which names the scripts and styles by
their hashes, would not let it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from importlib import resources
from pathlib import Path

from tapeprop.profiler.page.content import content
from tapeprop.profiler.profile import Profile
from tapeprop.runtime.writing import write_text

__all__ = ["page", "write"]

SCRIPTS = (
    "format",
    "model",
    "state",
    "canvas",
    "details",
    "lanes",
    "timeline",
    "memory",
    "roofline",
    "table",
    "findings",
    "graph",
    "header",
    "main",
)
# In JSON these can stand for themselves only inside strings, where an escape means the same; so no text ends the script element.
ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


def write(profile: Profile, path: str | os.PathLike[str]) -> Path:
    """Writes the page, whole or not at all; the path. OSError."""
    return write_text(path, [page(profile)])


def page(profile: Profile) -> str:
    """The page as text."""
    style = _file("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_file(f"{name}.js") for name in SCRIPTS) + "})();\n"
    data = json.dumps(content(profile), separators=(",", ":"), allow_nan=False).translate(ESCAPES)
    title = f"tapeprop profile: {profile.what}, {profile.created}".encode("utf-8", "replace").decode()
    parts = {
        "policy": f"default-src 'none'; img-src data:; script-src '{_hash(script)}'; style-src '{_hash(style)}'",
        "title": html.escape(title),
        "style": style,
        "script": script,
        "data": data,
    }
    # In one pass: what was put in is not looked at again, whatever names of nodes hold.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html"))


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
