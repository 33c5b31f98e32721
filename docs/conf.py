"""Configuration of the documentation: `sphinx-build -W -b html docs build/docs`."""

from isanet_zoo import __version__

project = "isanet-zoo"
author = "The isanet_zoo developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]
html_theme = "furo"
html_title = f"isanet-zoo {__version__}"

myst_heading_anchors = 3
suppress_warnings = ["myst.strikethrough"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
default_role = "code"  # docstrings mark code by single backticks
