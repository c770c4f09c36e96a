"""How `make docs` builds the site: Sphinx, Markdown by MyST, tutorials executed by MyST-NB, the theme Furo.

The pages ask no network for anything: `scripts/check_site.py` looks at what was built.
"""

import os
import sys
from functools import partialmethod
from pathlib import Path

from nbclient import NotebookClient
from sphinx.application import Sphinx

import thorad

project = "thorad"
author = copyright = "The thorad developers"
version = release = thorad.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["**.ipynb_checkpoints"]

# Markdown: links to headings, by the anchors that code hosts make, too; what they don't find is a warning.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "colon_fence"]

# Tutorials run from nothing, each in a folder of its own that is gone afterwards, and one that fails ends the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_render_markdown_format = "myst"  # has tables
# IPython hands on what a command prints in pieces of 100 characters: joined again, they are its output.
NotebookClient.__init__ = partialmethod(NotebookClient.__init__, coalesce_streams=True)
os.environ["TTY_COMPATIBLE"] = "0"  # for Rich: Jupyter says that it is a terminal, but no bars here
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # has the command thorad
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent / "tutorials"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Docstrings: Google's sections; `name` is code; signatures as they are written.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True, "exclude-members": "model_config"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"thorad {version}"
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True


def setup(app: Sphinx) -> None:
    """Attributes' docstrings are text: Napoleon takes what stands before a colon in the first line for a type."""
    app.connect("autodoc-process-docstring", break_after_first_colon, priority=400)


def break_after_first_colon(
    app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]
) -> None:
    """In a first line that ends with its colon, Napoleon finds no type."""
    if what in ("attribute", "property") and lines and ": " in lines[0]:
        before, _, after = lines[0].partition(": ")
        lines[:1] = [f"{before}:", after]
