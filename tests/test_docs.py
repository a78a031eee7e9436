"""What the pages say is so: roles and rights, and every command line in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from neuraverse.cli import reference
from neuraverse.registry.limits import OUTBOUND_S
from neuraverse.registry.tenants.access import RIGHTS, ROLES
from neuraverse.registry.webhooks import deliveries

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = dict(reference.commands())


def table_rows(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]


def test_the_table_of_roles():
    text = (DOCS / "sharing.md").read_text()
    table = table_rows(text.partition("What a role allows:\n\n")[2].partition("\n\n")[0])
    roles = table[0][1:]
    assert set(roles) == set(ROLES)
    rights = {row[0].partition(":")[0].strip("`"): row for row in table[2:]}
    assert {*rights, "host"} == set(RIGHTS)
    for right, row in rights.items():
        assert row[0] == f"`{right}`: {RIGHTS[right]}"
        assert [role for role, cell in zip(roles, row[1:], strict=True) if cell == "yes"] == [
            role for role in roles if right in ROLES[role]
        ], right
        assert set(row[1:]) <= {"yes", ""}
    assert RIGHTS["host"].partition(";")[0] in " ".join(text.split())


def test_numbers_of_webhooks():
    text = " ".join((DOCS / "sharing.md").read_text().split())
    assert f"within {OUTBOUND_S:g} s;" in text
    assert f"after {deliveries.FIRST_PAUSE_S:g} s, then later and later, {deliveries.TRIES} times" in text


def command_lines(page):
    text = page.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [*lines, *re.findall(r"`(neuraverse [^`]+)`", text)]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_command_lines_are_some(page):
    for line in command_lines(page):
        words = shlex.split(line.partition(" > ")[0].partition(" < ")[0], comments=True)
        if not words or words[0] != "neuraverse":
            continue
        name = words.pop(0)
        while words and f"{name} {words[0]}" in COMMANDS:
            name = f"{name} {words.pop(0)}"
        command = COMMANDS[name]
        assert name != "neuraverse" or words[:1] == ["--help"], f"{page.name}: there is no command {line!r}"
        known = {
            option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]
        }
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in {*known, "--help"}, f"{page.name}: {line!r} has {word}"


def test_the_example_of_a_receiver_holds():
    text = (DOCS / "sharing.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(compile(program, "sharing.md", "exec"), names)  # our own page
    secret, body = "whsec_" + "QUJD" * 8, b'{"type":"test"}'
    headers = deliveries.message(type("Row", (), {"secret": secret}), "abcd-1", body)
    assert names["holds"](secret, headers, body)
    assert not names["holds"](secret, headers, body + b" ")
    assert not names["holds"](secret, headers | {"webhook-timestamp": "1614265330"}, body)
