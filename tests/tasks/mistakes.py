"""Ways to break a valid task folder, and the problem that each must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROW = '{"id": "new", "text": "some words", "label": "refund"}'
SLICE = "description: The shop.\nseeds:\n"
ONE_OBJECT = "one JSON object on each line"


@dataclass(frozen=True)
class Mistake:
    """How to break a valid folder, and the problem that this must give. `line` is 0 for the whole file."""

    name: str
    breaks: Callable[[Path], object]
    file: str
    line: int
    field: str | None
    message: str
    remedy: str


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda path: (path / name).write_bytes(raw)


def append(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda path: (path / name).write_bytes((path / name).read_bytes() + raw)


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    def do(path: Path) -> None:
        text = (path / name).read_text()
        assert old in text
        (path / name).write_text(text.replace(old, new, 1))

    return do


def link(name: str) -> Callable[[Path], object]:
    """Move a file or folder out of the task folder and put a symbolic link in its place."""

    def do(path: Path) -> None:
        outside = path.parent.parent / "outside"
        (path / name).rename(outside)
        (path / name).symlink_to(outside)

    return do


def subfolder(path: Path) -> None:
    (path / "slices" / "area").mkdir()
    (path / "slices" / "area" / "web.yaml").write_text("description: x\nseeds: [text]\n")


def templates(name: str, content: str | bytes) -> Callable[[Path], object]:
    def do(path: Path) -> None:
        (path / "templates").mkdir()
        write(f"templates/{name}", content)(path)

    return do


def linked_templates(path: Path) -> None:
    templates("classification_user.j2", "{{ text }}")(path)
    link("templates")(path)


def repeat_line(name: str) -> Callable[[Path], object]:
    def do(path: Path) -> None:
        append(name, (path / name).read_text().splitlines(keepends=True)[0])(path)

    return do


def directory(name: str) -> Callable[[Path], object]:
    def do(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return do
