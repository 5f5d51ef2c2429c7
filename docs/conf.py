"""Sphinx configuration; `make docs` builds docs/_build/html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import langevin_ppl  # noqa: E402

project = "langevin_ppl"
author = "The langevin_ppl authors"
copyright = f"2026, {author}"
version = release = langevin_ppl.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings state shapes; the signature stays readable
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
# As fields, or the attributes of a NamedTuple are described twice, which is a warning.
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = f"langevin_ppl {release}"
html_theme_options = {"show_toc_level": 2}


def skip_bare_tuple_fields(app, what, name, obj, skip, options):
    """Leave out the 'Alias for field number 0' of a NamedTuple."""
    if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    return None


def setup(app):
    app.connect("autodoc-skip-member", skip_bare_tuple_fields)
