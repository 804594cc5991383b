"""README and docs: links resolve, quoted messages and named files exist, every block says what it is, every command has its options."""

import ast
import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from blocks import PAGES, ROOT, blocks
from import_graph import PACKAGES

from firstsight.cli import main as firstsight
from firstsight.recipe import LossSection, Recipe, load_recipe_content
from firstsight.secrets import MASK
from phase1_teacher.cli import main as fs_teacher
from phase2_student.cli import main as fs_student
from phase2_student.training.known_arguments import ACTS, REFUSED

GROUPS = {"firstsight": firstsight, "fs-teacher": fs_teacher, "fs-student": fs_student}
LANGUAGES = {"sh", "python", "text", "yaml", "json", "jsonc", "csv"}
NEEDED = {
    "gpu", "hub", "network", "slurm", "time", "conda", "torchvision", "vllm", "llm-compressor", "llama.cpp",
}  # fmt: skip
HISTORY = {"docs/log.md"}  # what was true on a day, commands of that day included
BLOCKS = [block for page in PAGES for block in blocks(page)]
DOCS = sorted((ROOT / "docs").glob("*.md"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of its headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    return (link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_leads_to_every_page():
    index = ROOT / "docs" / "index.md"
    reached = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert reached >= {page.resolve() for page in PAGES} - {index}
    assert "docs/index.md" in set(links(ROOT / "README.md"))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_what_it_is(block):
    assert block.language in LANGUAGES
    assert set(block.needs) <= NEEDED
    if block.language == "text":
        hidden = [
            line for line in block.text.splitlines() if re.match(r"(\$ |firstsight |fs-\w+ |python |pip |make )", line)
        ]
        assert not hidden, "commands stand in blocks of sh"
    elif block.language == "python":
        ast.parse(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        content = yaml.safe_load(block.text)
        assert set(content) <= set(Recipe.model_fields)
        load_recipe_content(content, directory=ROOT, name=str(block))


def checked(command: str) -> None:
    """A command line that is not run: program, command, options, keys of the recipe, and files of ours exist."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):  # a variable of the environment
        words.pop(0)
    if any(launcher in words for launcher in ("torchrun", "accelerate", "sbatch")):
        for word in words:
            if word.startswith(("examples/", "recipes/")):
                assert (ROOT / word).is_file(), word
        words = next((words[at:] for at, word in enumerate(words) if word in GROUPS), [])
    if not words:
        return
    if words[0] in GROUPS:
        check_options(GROUPS[words[0]], words)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), f"no such target: {command}"
    elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks"):
        path = ROOT / words[2].replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), command
    for word in words:
        if word in ("constraints.txt", "pyproject.toml"):
            assert (ROOT / word).is_file()


def check_options(command: click.Command, words: list[str]) -> None:
    name, *rest = words
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{name} {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    for option, following in zip(rest, [*rest, ""][1:], strict=True):
        if not option.startswith("-"):
            continue
        option, _, value = option.partition("=")
        assert option in known, f"{' '.join(words)}: no option {option}"
        if option in ("--set", "--grid"):
            check_key((value or following).partition("=")[0])


def check_key(key: str) -> None:
    """A key of the recipe, or a bare one of the loss."""
    section, _, name = key.partition(".")
    if "..." in key or key.isupper():
        return
    if not name:
        assert section in LossSection.model_fields, key
    elif section == "training":
        assert name in ACTS | REFUSED.keys(), key
    else:
        assert name.partition(".")[0] in Recipe.model_fields[section].annotation.model_fields, key


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=str)
def test_every_command_has_its_options(block):
    for command in block.commands():
        checked(command)


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in HISTORY], ids=name_of)
def test_every_command_in_a_sentence_has_its_options(page):
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]
    found = [
        span
        for span in spans
        if span.split() and span.split()[0] in {*GROUPS, "make", "torchrun", "accelerate", "sbatch"}
    ]
    for command in found:
        if command != "make" and len(command.split()) > 1:
            checked(command.replace("|", " "))


def test_every_example_in_a_help_has_its_options():
    reference = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))
    for root, group in GROUPS.items():
        for _, command in reference["commands"](root, group):
            for example in re.findall(r"Example: (.+)", command.help or ""):
                checked(example)


def literals() -> Iterator[str]:
    """Every text of our code, with `...` for what is put into it."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_quoted_message_is_in_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [block.text.strip() for block in blocks(ROOT / "docs" / "troubleshooting.md") if block.language == "text"]
    assert len(re.findall(r"^## ", page, re.M)) == 10 <= len(quoted)
    texts = set(literals())
    for message in quoted:
        parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
        pattern = re.compile(r".*?".join(parts), re.S)
        assert any(pattern.search(text) for text in texts), f"no message of the code says: {message}"
    assert MASK not in page


def test_every_file_that_contributing_names_is_there():
    named = re.findall(r"`([^`\s]+/[^`\s]*)`", prose(ROOT / "CONTRIBUTING.md"))
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_contributing_names_what_is_in_the_code():
    """Names in capitals and classes stand in one of the files of their paragraph."""
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        files = [ROOT / name for name in re.findall(r"`([^`\s]+\.py)`", line)]
        for name in re.findall(r"`(_?[A-Z][A-Z]+|[A-Z][a-z]+[A-Z]?\w*)`", line):
            assert not files or any(re.search(rf"\b{name}\b", file.read_text()) for file in files), f"{name}: {line}"


def test_the_page_on_installing_has_every_extra():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page, re.M))
    assert set(rows) == set(extras)
    for extra, packages in rows.items():
        declared = {re.split(r"[\[>=<]", text)[0] for text in extras[extra]}
        shown = {name.strip() for name in packages.split(",")}
        assert shown <= declared, extra
        assert shown == declared or extra == "dev", extra
