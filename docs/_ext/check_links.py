"""Check the links of built pages: ``python docs/_ext/check_links.py docs/_build/html``.

A link to a file or an anchor that is not there is an error. Links to other sites are
not followed.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note the anchors and links of a tag."""
        found = dict(attrs)
        self.anchors |= {found[k] for k in ("id", "name") if found.get(k)}
        self.links |= {found[k] for k in ("href", "src") if found.get(k)}


def broken(folder):
    """Return "page: link" for every internal link that leads nowhere."""
    folder = Path(folder).resolve()
    # The theme's templates of pages are no pages.
    paths = [p for p in folder.rglob("*.html") if p.name != "webpack-macros.html"]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    found = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchor = unquote(url.fragment)
            if not target.exists() or (
                anchor and target in pages and anchor not in pages[target].anchors
            ):
                found.append(f"{path.relative_to(folder)}: {link}")
    return sorted(found)


if __name__ == "__main__":
    links = broken(sys.argv[1])
    print(*links, sep="\n")
    sys.exit(f"{len(links)} broken links" if links else 0)
