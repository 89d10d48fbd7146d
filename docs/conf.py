"""How Sphinx makes the reference: ``tools/make_docs.py`` puts this file beside the pages that it writes."""

import re

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.writers.html5 import HTML5Translator

import blockkit

project = "blockkit"
author = "the authors of blockkit"
version = release = blockkit.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
html_theme = "furo"
html_title = f"blockkit {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
highlight_language = "none"
add_module_names = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
maximum_signature_line_length = 88
python_display_short_literal_types = True
suppress_warnings = ["ref.python"]  # an attribute that two classes have, such as n_coils
# Types of other libraries, private ones and type variables are not linked.
nitpick_ignore_regex = [("py:(class|data|obj|exc)", r"(?!blockkit\b).*|.*\.(_\w+|Item|Drawing|Function|T)")]


def number_references(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make the numbered references of one docstring a list of its own: on a page they would meet those of others."""
    lines[:] = [re.sub(r"\[(\d+)\]_", r"[\1]", re.sub(r"^( *)\.\. \[(\d)\] ", r"\1\2. ", line)) for line in lines]


def mathml(node: nodes.Element, *, as_block: bool = False) -> str:
    """Return a formula as MathML, which has no need of the words of ours that the converter does not know."""
    tex = re.sub(r"\\Big(?!\w)", "", node.astext().replace(r"\dots", r"\ldots"))
    return latex2mathml.tex2mathml(tex, as_block=as_block)


def write_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line as MathML."""
    self.body.append(mathml(node))
    raise nodes.SkipNode


def write_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on its own as MathML."""
    self.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def find_moved(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Node) -> nodes.reference | None:
    """Link a name that a docstring gives by its module, or by its last part, to where it is shown."""
    if node.get("refdomain") != "py":
        return None
    objects = env.get_domain("py").objects  # type: ignore[attr-defined]
    target = node["reftarget"].lstrip(".")
    parts = target.split(".")
    tail = ".".join(parts[-2:] if node["reftype"] in ("meth", "attr") and len(parts) > 1 else parts[-1:])
    names = [f"blockkit.{tail}", *(name for name in objects if name.endswith(f".{tail}"))]
    for name in names:
        if name in objects:
            return make_refnode(
                app.builder, node["refdoc"], objects[name].docname, objects[name].node_id, content, name
            )
    return None


def setup(app: Sphinx) -> None:
    """Add what Sphinx does not do by itself."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    app.connect("autodoc-process-docstring", number_references, priority=400)  # before napoleon reads the sections
    app.connect("missing-reference", find_moved)
