"""Writes docs/cli.md from the commands' own --help: `make docs`. A test fails when the page has drifted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from firstsight.cli import main as firstsight
from phase1_teacher.cli import main as fs_teacher
from phase2_student.cli import main as fs_student

PAGE = Path(__file__).with_name("cli.md")
GROUPS = {"firstsight": firstsight, "fs-teacher": fs_teacher, "fs-student": fs_student}


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, with their full names."""
    yield name, command
    if isinstance(command, click.Group):
        for child in sorted(command.commands):
            yield from commands(f"{name} {child}", command.commands[child])


def page() -> str:
    """The whole page as Markdown."""
    parts = ["# Commands\n\nGenerated from `--help` by `make docs`.\n"]
    for root, group in GROUPS.items():
        for name, command in commands(root, group):
            context = click.Context(command, info_name=name, terminal_width=100, max_content_width=100)
            parts.append(f"## `{name}`\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
