"""How Sphinx makes the site: `make docs`."""

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "must_jax"
copyright = "the must_jax authors, Apache-2.0"
release = re.search(
  r'__version__ = "(.+)"',
  (HERE.parent / "must_jax" / "__init__.py").read_text(),
)[1]

extensions = [
  "myst_nb",  # Markdown, and notebooks with their stored outputs
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",  # docstrings in Google's style
  "sphinx.ext.viewcode",
  "sphinx_copybutton",
  "sphinx_design",  # cards and grids
  "reference",  # ours, as in docs/extensions
]
exclude_patterns = ["_build", "tutorials/*.md", "**/README.md"]

html_theme = "furo"
html_title = f"must_jax {release}"
html_static_path = ["images"]
html_show_sphinx = False
html_copy_source = False
highlight_language = "none"  # where a block does not say

myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_block"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # a test runs them, `tests/docs`
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_inherit_docstrings = False  # an override says what is its own
autodoc_preserve_defaults = True
# As arguments are, instead of an entry in the index for each.
napoleon_custom_sections = [("Attributes", "params_style")]
# Names of other projects, of which no list is at hand offline.
nitpick_ignore_regex = [(r"py:.*", r"(?!must_jax\b).*")]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
copybutton_exclude = ".linenos, .gp, .go"
