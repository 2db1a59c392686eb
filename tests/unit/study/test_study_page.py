"""A page as Markdown and as HTML."""

from __future__ import annotations

import base64
from pathlib import Path

from study.page import Page


def page() -> Page:
    made = Page()
    made.heading(1, "Title & more")
    made.text("Some `a < b` and", "**bold**.")
    made.table(("row", "value"), [("a|b", "**1**"), ("<c>", "2")])
    made.picture("plot.png", b"PNG bytes", "what it shows")
    return made


def test_markdown_by_hand() -> None:
    assert page().markdown() == (
        "# Title & more\n\nSome `a < b` and **bold**.\n\n"
        "| row | value |\n|---|---:|\n| a\\|b | **1** |\n| <c> | 2 |\n\n![what it shows](plot.png)\n"
    )


def test_html_needs_no_other_file_and_escapes() -> None:
    text = page().html()
    assert "<h1>Title &amp; more</h1>" in text
    assert "<code>a &lt; b</code> and <b>bold</b>" in text
    assert "<td>a|b</td><td><b>1</b></td>" in text
    assert "<td>&lt;c&gt;</td>" in text
    assert f"data:image/png;base64,{base64.b64encode(b'PNG bytes').decode()}" in text
    assert 'src="plot.png"' not in text


def test_everything_is_written(tmp_path: Path) -> None:
    page().write(tmp_path / "new", "paper")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "paper.html",
        "paper.md",
        "plot.png",
    ]
    assert (tmp_path / "new" / "plot.png").read_bytes() == b"PNG bytes"
