"""Griffe extension: examples in docstrings become fenced blocks; Markdown would take them for quotations."""

from typing import Any

import griffe

__all__ = ["DoctestBlocks", "fenced"]


def fenced(text: str) -> str:
    """The text with each example, from its prompt to the next blank line, in a fence."""
    lines: list[str] = []
    inside = given = False
    for line in text.splitlines():
        bare = line.strip()
        if not inside and bare.startswith("```"):
            given = not given
        elif not inside and not given and bare.startswith(">>> "):
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            lines += ["", f"{indent}```python"]
        elif inside and not bare:
            inside = False
            lines.append(f"{indent}```")
        lines.append(line)
    return "\n".join([*lines, f"{indent}```"] if inside else lines)


class DoctestBlocks(griffe.Extension):
    """Rewrites docstrings when they are loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
