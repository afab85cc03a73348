"""Write formulas as MathML, which browsers draw without a script or a download."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def visit_inline(self, node):
    """Write a formula of a line of text."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_block(self, node):
    """Write a formula that stands by itself."""
    self.body.append('<div class="math">')
    for part in node.astext().split("\n\n"):
        if part.strip():
            self.body.append(tex2mathml(part, as_block=True))
    self.body.append("</div>")
    raise nodes.SkipNode


def setup(app):
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True}
