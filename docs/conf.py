"""How Sphinx builds the site out of these pages (`make docs`). Nothing here uses the network."""

import re
from pathlib import Path
from typing import Any

import tomllib
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = PROJECT["name"]
release = version = PROJECT["version"]
html_title = f"{project} {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

# Pages are Markdown that a code host shows as it is: no extension of the syntax outside index.md. Links to headings are
# checked as those to pages are. A page that no list of pages has is a warning, and warnings are errors.
myst_heading_anchors = 4

# The package itself is imported, trainers are not: each wants versions of its own.
autodoc_mock_imports = ["accelerate", "deepspeed", "lightning", "megatron", "transformers"]
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False

html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True


_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([\w./-]+?)(?:#[\w-]+)?\)")


def _name_what_is_outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to pages and folders of the repository outside docs/, which the site does not have, become their paths.

    Other files are left alone: Sphinx copies them.
    """

    def path(link: re.Match[str]) -> str:
        title, target = link.groups()
        found = ROOT / target
        if not found.exists():
            logging.getLogger(__name__).warning("%s: there is no %s", page, target)
        elif not found.is_dir() and found.suffix != ".md":
            return link[0]
        return f"`{target}`" if title.strip("`") in (target, found.name) else f"{title} (`{target}`)"

    if Path(app.env.doc2path(page)).suffix == ".md":
        # A link from a page of a subfolder to another page is none to the outside.
        folder = app.srcdir / Path(page).parent
        source[0] = _OUTSIDE.sub(
            lambda link: link[0] if _is_inside(folder, link[0], Path(app.srcdir)) else path(link), source[0]
        )


def _is_inside(folder: Path, link: str, docs: Path) -> bool:
    target = link.rpartition("](")[2].rstrip(")").partition("#")[0]
    return (folder / target).resolve().is_relative_to(docs.resolve())


def _skip_aliases(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Fields of a NamedTuple are described in its docstring."""
    return True if str(getattr(member, "__doc__", "")).startswith("Alias for field number") else None


def _keep_colons(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """napoleon takes what stands before a property's first colon for its type, unless that is nothing."""
    if what in ("property", "attribute", "data") and lines:
        lines[0] = f": {lines[0]}"


def setup(app: Sphinx) -> None:
    """Connects the functions above."""
    app.connect("source-read", _name_what_is_outside)
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", _skip_aliases)
