"""The pages of the documentation that nobody writes by hand; a hook of mkdocs (``hooks`` in mkdocs.yml).

- ``index.md`` is the README, and ``security.md`` is SECURITY.md, with links as seen from docs/.
- ``commands/NAME.md`` describes a command, read from the program itself, so that it cannot be out of date.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaweights.cli.group import COMMANDS, deltaweights

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DROP_INS = ("apply-delta", "make-delta")


def pages() -> dict[str, str]:
    """Return the generated pages by their paths below docs/."""
    made = {
        "index.md": _seen_from_docs("README.md"),
        "security.md": _seen_from_docs("SECURITY.md"),
        "commands/index.md": _command_list(),
    }
    return made | {f"commands/{name}.md": command_page(name) for name in [*COMMANDS, *DROP_INS]}


def find_command(name: str) -> click.Command:
    """Return a command of the program, or one of the drop-in programs."""
    if name in DROP_INS:
        from deltaweights.cli import drop_in  # noqa: PLC0415  (beside the other commands, imported when asked for)

        found: click.Command = getattr(drop_in, name.replace("-", "_"))
        return found
    command = deltaweights.get_command(click.Context(deltaweights), name)
    if command is None:
        raise KeyError(name)
    return command


def command_page(name: str) -> str:
    """Return the reference page of a command: how it is called, what it does, and every option."""
    program = name if name in DROP_INS else f"deltaweights {name}"
    command = find_command(name)
    context = click.Context(command, info_name=program)
    usage = " ".join([program, *command.collect_usage_pieces(context)])
    lines = [f"# {program}", "", "```text", usage, "```", "", _text(command.help or ""), ""]
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    lines += ["| option | | default |", "|---|---|---|"]
    lines += [_row(each, context) for each in options]
    examples = getattr(command, "examples", ())
    if examples:
        lines += ["", "```text", *examples, "```"]
    return "\n".join(lines) + "\n"


def _row(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    takes = "" if option.is_flag or option.count else f" `{_metavar(option, context)}`"
    extra = option.get_help_extra(context)
    default = f"`{extra['default']}`" if "default" in extra and not option.required else ""
    limits = f" Takes `{extra['range']}`." if "range" in extra else ""
    needed = " Required." if option.required else ""
    return f"| {names}{takes} | {_cell(option.help or '')}{limits}{needed} | {_cell(default)} |".replace("  ", " ")


def _metavar(option: click.Option, context: click.Context) -> str:
    return option.make_metavar(context).replace("|", "\\|")


def _cell(text: str) -> str:
    """Return help text as a cell of a table: angle brackets and bars would be markup."""
    return re.sub(r"(?<!\\)\|", "\\|", " ".join(text.split())).replace("<", "&lt;")


def _text(help_text: str) -> str:
    """Return the help of a command as Markdown: what is not to be wrapped (after a backspace) is a code block."""
    text = re.sub(r"\f.*", "", help_text, flags=re.DOTALL).rstrip()
    blocks = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if block.lstrip(" ").startswith("\b"):
            code = "\n".join(line for line in block.splitlines() if line.strip() != "\b").replace("\b", "")
            blocks.append(f"```text\n{code}\n```")
        else:
            blocks.append(block.replace("<", "&lt;"))
    return "\n\n".join(blocks)


def _command_list() -> str:
    """Return the page that lists all commands."""
    rows = [f"| [`{name}`]({name}.md) | {_cell(text)} |" for name, text in COMMANDS.items()]
    drop_ins = [f"| [`{name}`]({name}.md) | With the flags of the original script. |" for name in DROP_INS]
    head = ["# Commands", "", "These pages are read from the program when the site is built.", ""]
    return "\n".join([*head, "| command | |", "|---|---|", *rows, *drop_ins]) + "\n"


def _seen_from_docs(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"(\]\(|src=\")docs/", r"\1", text)


def _without_outside(markdown: str) -> str:
    """Return a page without links to files outside docs/, which the site does not have; their text stays."""
    inside = {"../README.md": "index.md", "../SECURITY.md": "security.md"}

    def replaced(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3]
        return f"[{text}]({inside[target]}{anchor})" if target in inside else text

    markdown = re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+)(#[^)]*)?\)", replaced, markdown)
    return re.sub(r"\[([^\]]+)\]\((LICENSE|SECURITY\.md|CONTRIBUTING\.md|CHANGELOG\.md)\)", r"\1", markdown)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put all commands, and all decisions, into the navigation, below the page that lists them (called by mkdocs)."""
    decisions = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("0*.md"))
    below: dict[str, list[Any]] = {
        "commands/index.md": [{name: f"commands/{name}.md"} for name in [*COMMANDS, *DROP_INS]],
        "decisions/README.md": [f"decisions/{name}" for name in decisions],
    }
    _extend(config.nav or [], below)
    return config


def _extend(entries: list[Any], below: dict[str, list[Any]]) -> None:
    """Append to each list of the navigation that begins with a key of ``below`` the entries that belong there."""
    for value in [value for entry in entries if isinstance(entry, dict) for value in entry.values()]:
        if isinstance(value, list):
            _extend(value, below)
    if entries and isinstance(entries[0], str):
        entries += below.get(entries[0], [])


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages (called by mkdocs)."""
    from mkdocs.structure.files import File  # noqa: PLC0415  (only in the environment of the site)

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_others: object) -> str:
    """Return the Markdown of a page as the site can show it (called by mkdocs)."""
    prefix = "../" if "/" in page.file.src_uri else ""
    return _without_outside(markdown.replace("](../../", "](../") if prefix else markdown)
