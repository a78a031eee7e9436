"""The page that a browser sees: which skills there are, and how to get one. No scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .4rem .6rem; vertical-align: top }
tr { border-bottom: 1px solid #ddd } code { background: #f3f3f3; padding: .1rem .3rem; border-radius: .2rem }
"""


def page(skills: Sequence[dict[str, Any]], following: str | None, query: str, url: str) -> str:
    """The HTML.

    Args:
        skills: As `finding.search` gives them.
        following: Cursor of the next page, or None.
        query: What was searched for.
        url: The registry's own address.
    """
    rows = "".join(map(_row, skills))
    table = f"<table><tr><th>skill<th>what<th>learnt on<th>success<th>in the field</tr>{rows}</table>"
    nothing = "<p>Nothing here yet. Publish a skill with <code>neuraverse publish PATH</code>.</p>"
    if query:
        nothing = f"<p>No skill matches “{escape(query)}”.</p>"
    target = escape(urlencode({"q": query, "cursor": following or ""}))
    more = f'<p><a href="/?{target}">more</a></p>' if following else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>neuraverse registry</title><style>{_STYLE}</style>
<h1>neuraverse registry</h1>
<p>Pull a skill with <code>NEURAVERSE_REGISTRY={escape(url)} neuraverse pull NAME</code>. The API is described
in <a href="/openapi.json">/openapi.json</a>; events arrive on <code>/v1/events/stream</code>.</p>
<form><input name="q" value="{escape(query)}" maxlength="200" aria-label="search">
<button>Go</button></form>
{table if skills else nothing}{more}
</html>
"""


def _row(skill: dict[str, Any]) -> str:
    name = escape(f"{skill['name']}@{skill['version']}")
    href = escape(f"/v1/skills/{skill['name']}/{skill['version']}")
    field = skill["field"]
    return (
        f'<tr><td><a href="{href}"><code>{name}</code></a><br><small>{escape(skill["digest"][:19])}…</small>'
        f"<td>{escape(skill['title'])}<td>{escape(skill['robot'])}"
        f"<td>{_score(skill['rate'], skill['lower'], skill['n'])}"
        f"<td>{_score(field['successes'] / field['n'], field['lower'], field['n']) if field else ''}</tr>"
    )


def _score(rate: float, lower: float, n: int) -> str:
    return f"{rate:.1%} (≥ {lower:.1%}, n = {n})"
