"""Tables for notebooks, which show what ``_repr_html_`` of an object returns."""

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

__all__ = ["fold", "table", "to_html"]

_LEFT, _RIGHT = ({"style": f"text-align: {side}"} for side in ("left", "right"))


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    """A table whose columns of numbers are aligned right.

    It names no colour, so that it is read on a light page and on a dark one.
    """
    cells = [tuple(row) for row in rows]
    styles = [_RIGHT if cells and all(map(_is_number, column)) else _LEFT for column in zip(*cells, strict=True)]
    made = Element("table")
    if caption:
        SubElement(made, "caption", style="text-align: left; caption-side: top").text = caption
    _add_row(SubElement(made, "thead"), "th", header, styles or [_LEFT] * len(header))
    body = SubElement(made, "tbody")
    for row in cells:
        _add_row(body, "td", row, styles)
    return made


def fold(title: str, content: Element) -> Element:
    """Content that is seen once its title is clicked."""
    made = Element("details")
    SubElement(made, "summary").text = title
    made.append(content)
    return made


def to_html(*elements: Element) -> str:
    """The elements as HTML; all text in them is escaped."""
    return "".join(tostring(element, encoding="unicode", method="html") for element in elements)


def _add_row(part: Element, tag: str, texts: Sequence[str], styles: Sequence[dict[str, str]]) -> None:
    row = SubElement(part, "tr")
    for text, style in zip(texts, styles, strict=True):
        SubElement(row, tag, style).text = text


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
