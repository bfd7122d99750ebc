"""How Sphinx builds these pages: `sphinx-build -W docs build/docs`."""

import fastfactor

project = "fastfactor"
author = "the fastfactor authors"
copyright = author
release = version = fastfactor.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]

# Links to headings, `page.md#a-heading`, as GitHub makes them.
myst_heading_anchors = 3
# Two hyphens are two hyphens, as in --json.
smartquotes = False

# Docstrings say the types of parameters; signatures stay short.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# A method of a subclass that says nothing new is documented once, in its base class.
autodoc_inherit_docstrings = False
numpydoc_show_class_members = False


html_theme = "furo"
html_title = "fastfactor"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
