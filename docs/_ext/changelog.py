"""Show CHANGELOG.md: its headings, lists, code and links, as reStructuredText.

These are all that a changelog needs, so no Markdown parser has to be installed.
"""

import re

HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[([^\]]+)\]\((https?://[^)]+)\)")
UNDERLINES = "=-~"


def to_rst(markdown):
    """Turn Markdown into reStructuredText.

    >>> print(to_rst("# A\\n\\n- `b` of [c](https://d.org)"))
    A
    =
    <BLANKLINE>
    - ``b`` of `c <https://d.org>`__
    """
    text = CODE.sub(r"``\1``", markdown)
    text = LINK.sub(r"`\1 <\2>`__", text)
    return HEADING.sub(_heading, text)


def _heading(match):
    level, title = len(match[1]), match[2]
    return f"{title}\n{UNDERLINES[level - 1] * len(title)}"


def _on_include(app, path, parent_docname, content):
    if path.name == "CHANGELOG.md":
        content[0] = to_rst(content[0])


def setup(app):
    """Register with Sphinx."""
    app.connect("include-read", _on_include)
    return {"parallel_read_safe": True}
