"""The README is true: its examples run, its routes and commands are those that exist."""

import re
from pathlib import Path

import pytest

from chromseek.search.atlas import Atlas

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chromseek.service.demo import run

    monkeypatch.chdir(tmp_path)
    run("tiny", Path("chromseek-demo"))
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert isinstance(names["atlas"], Atlas)
    assert len(names["hits"]) > 0  # type: ignore[arg-type]


def test_every_route_is_in_the_readme(atlas: Atlas) -> None:
    from chromseek.service.app import create_app

    paths = create_app(atlas).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert routes == set(re.findall(r"^\| `((?:GET|POST) /[^`]*)`", README, re.MULTILINE))


def test_every_command_is_in_the_readme() -> None:
    from typer.main import get_command

    from chromseek.service.cli import app

    listed = re.search(r"`((?:\w+ )+\w+)`, each with examples under `--help`", README)
    assert listed is not None
    assert set(get_command(app).commands) == set(listed[1].split())  # type: ignore[attr-defined]


def test_shell_examples_name_real_options() -> None:
    from typer.main import get_command

    from chromseek.service.cli import app

    seen = 0
    for line in "\n".join(blocks("sh")).replace("\\\n", " ").splitlines():
        if not line.startswith("chromseek "):
            continue
        command, rest = get_command(app), line.split()[1:]
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if re.fullmatch(r"-{1,2}[a-z-]+", word)} <= known, line
        seen += 1
    assert seen >= 9
