"""A page in the making, written out twice from the same blocks: Markdown with pictures beside it, and one HTML file.

Text may hold `code` and **bold**, nothing else.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gnnmr_dist import storage

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #1c1e21; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #888; }
img { max-width: 100%; } code { background: #f2f3f5; padding: 0 .2em; }
"""


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    name: str
    png: bytes
    alt: str


@dataclass
class Page:
    """Blocks in order; the first heading is the title."""

    blocks: list[Heading | Text | Table | Picture] = field(default_factory=list)

    def heading(self, level: int, text: str) -> None:
        self.blocks.append(Heading(level, text))

    def text(self, *sentences: str) -> None:
        """One paragraph."""
        self.blocks.append(Text(" ".join(sentences)))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.blocks.append(Table(tuple(columns), tuple(tuple(row) for row in rows)))

    def picture(self, name: str, png: bytes, alt: str) -> None:
        """A PNG that stands beside the Markdown as ``name`` and within the HTML."""
        self.blocks.append(Picture(name, png, alt))

    def markdown(self) -> str:
        return "\n\n".join(_markdown(block) for block in self.blocks) + "\n"

    def html(self) -> str:
        """One file that needs no other."""
        title = next((block.text for block in self.blocks if isinstance(block, Heading)), "")
        body = "\n".join(_html(block) for block in self.blocks)
        head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'

    def write(self, folder: Path, name: str) -> None:
        """``name.md``, ``name.html`` and the pictures into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for block in self.blocks:
            if isinstance(block, Picture):
                storage.write_bytes_atomic(folder / block.name, block.png)
        storage.write_bytes_atomic(folder / f"{name}.html", self.html().encode())
        storage.write_bytes_atomic(folder / f"{name}.md", self.markdown().encode())


def _markdown(block: Heading | Text | Table | Picture) -> str:
    if isinstance(block, Heading):
        return "#" * block.level + " " + block.text
    if isinstance(block, Picture):
        return f"![{block.alt}]({block.name})"
    if isinstance(block, Text):
        return block.text
    rule = "|---|" + "---:|" * (len(block.columns) - 1)
    lines = [_row(block.columns), rule, *(_row(row) for row in block.rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _html(block: Heading | Text | Table | Picture) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_inline(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode()
        return f'<p><img alt="{html.escape(block.alt)}" src="data:image/png;base64,{data}"></p>'
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in block.columns)
    rows = ["<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in block.rows]
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def _inline(text: str) -> str:
    escaped = html.escape(text)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escaped)
