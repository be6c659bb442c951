"""HTML to text with the standard library's parser: paragraphs stay paragraphs, scripts and styles go.

bytes -> pieces -> HTMLParser -> runs of text and borders -> text in pieces
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

SILENT = frozenset(
    ("script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas", "select", "button")
)
PARAGRAPHS = frozenset(
    (
        "p",
        "div",
        "section",
        "article",
        "aside",
        "header",
        "footer",
        "main",
        "nav",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "ul",
        "ol",
        "dl",
        "table",
        "blockquote",
        "pre",
        "figure",
        "form",
        "title",
        "body",
        "hr",
        "address",
        "fieldset",
        "details",
    )
)
LINES = frozenset(("br", "li", "dt", "dd", "tr", "option", "caption", "figcaption", "summary"))
CELLS = frozenset(("td", "th"))
SPACES = re.compile(r"[ \t\n\r\f\v]+")
BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+\n?")


class TextOf(HTMLParser):
    """Feed it a page in any number of parts; `taken()` gives the text read so far and forgets it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.runs: list[str] = []
        self.size = 0
        self.silent = ""  # the element that hides what is inside it, and how deep it stands in itself
        self.depth = 0
        self.preformatted = 0

    def updatepos(self, i: int, j: int) -> int:
        """Lines and columns of the page are not wanted; counting them takes a tenth of the time."""
        return j

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.silent:
            self.depth += tag == self.silent
        elif tag in SILENT:
            self.silent, self.depth = tag, 1
        else:
            self.preformatted += tag == "pre"
            self.border(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self.silent:
            self.border(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.silent:
            self.depth -= tag == self.silent
            if not self.depth:
                self.silent = ""
            return
        if tag == "pre" and self.preformatted:
            self.preformatted -= 1
        self.border(tag)

    def border(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self.runs.append("\n\n")
        elif tag in LINES and not self.at_line_start():
            self.runs.append("\n")
        elif tag in CELLS and not self.at_line_start():
            self.runs.append("\t")

    def at_line_start(self) -> bool:
        return not self.runs or self.runs[-1].endswith("\n")

    def handle_data(self, data: str) -> None:
        if self.silent:
            return
        if not self.preformatted:
            data = SPACES.sub(" ", data)
            data = data.lstrip(" ") if self.at_line_start() else data
        if data:
            self.runs.append(data)
            self.size += len(data)

    def taken(self) -> str:
        """The text so far: single spaces, single line ends, one empty line between paragraphs."""
        text = "".join(self.runs)
        self.runs, self.size = [], 0
        tidy = "\n".join(line.rstrip() for line in text.split("\n"))
        return BLANK_LINES.sub("\n\n", tidy).strip("\n")
