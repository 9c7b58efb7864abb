"""HTML and SVG elements that escape whatever is not markup already."""

from __future__ import annotations

import html
from typing import Any

_VOID = {"meta", "br", "img", "circle", "line", "path", "rect", "image"}


class Markup(str):
    """Text that is markup. Any other text is escaped where it is put into an element."""


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """`<name attributes>children</name>`. None is left out, of children and of attributes.

    Attribute names are Python's: `class_` is class, and `_` stands for `-` (`text_anchor`). A value True is an
    attribute without value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key if key in ("viewBox", "preserveAspectRatio") else key.rstrip("_").replace("_", "-")
        words.append(label if value is True else f'{label}="{html.escape(str(value), quote=True)}"')
    start = " ".join(words)
    inside = joined(*children)
    if name in _VOID and not inside:
        return Markup(f"<{start}/>")
    return Markup(f"<{start}>{inside}</{name}>")


def joined(*children: Any) -> Markup:
    """Children one after another; lists and tuples among them are taken apart."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, (list, tuple)):
            parts.append(joined(*child))
        elif isinstance(child, Markup):
            parts.append(child)
        else:
            parts.append(html.escape(str(child), quote=False))
    return Markup("".join(parts))
