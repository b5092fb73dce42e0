"""README promises: its tables are those of the code, its commands exist, and its Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from mixzoo.zoo import cli, listing
from mixzoo.zoo.registry import FAMILIES, VARIANTS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table after ``heading``."""
    lines = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")][1:]


def options(command: str) -> set[str]:
    """Long options of a command; of an on/off pair, the one that changes the default."""
    found = set()
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "option":
            names = parameter.secondary_opts if parameter.secondary_opts and parameter.default else parameter.opts
            found.update(name for name in names if name.startswith("--"))
    return found - {"--help"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def first_word(cell: str) -> str:
    """The first word in backquotes."""
    return re.sub(r"^`(\w+).*", r"\1", cell)


def test_families_are_those_of_the_zoo() -> None:
    table = {first_word(name): (int(count), mixers) for name, count, mixers, _ in rows("Families")}
    assert list(table) == list(FAMILIES)
    for family, (count, mixers) in table.items():
        members = [v for v in VARIANTS.values() if v.family == family]
        used = sorted({m for v in members for m in listing.summary(v)["mixers"]})
        assert (count, mixers) == (len(members), ", ".join(used))


def test_commands_and_their_options_are_all_there() -> None:
    table = {first_word(usage): set(re.findall(r"--[\w-]+", text)) for usage, _, text in rows("On the command line")}
    assert table == {name: options(name) for name in COMMANDS}


def test_shell_examples_use_what_exists() -> None:
    lines = [line.split() for block in blocks("sh") for line in block.splitlines() if line.startswith("mixzoo ")]
    assert len(lines) >= 7
    for _, command, *rest in lines:
        assert {word for word in rest if word.startswith("--")} <= options(command)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = README + (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "Makefile").read_text()
    named = {word for words in re.findall(r"`make ([a-z-]+(?: [a-z-]+)*)`", text) for word in words.split()}
    named |= set(re.findall(r"^make ([a-z-]+)", README, re.M))
    assert {"demo", "test", "test-full", "fast", "format"} <= named <= targets


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python_examples_run(code: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
