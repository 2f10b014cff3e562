"""Sphinx: the site (furo) and the manual pages, both with warnings as errors."""

import re

project = "mirrormap"
author = copyright = "the mirrormap maintainers"
version = release = "0.1"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["deflist", "colon_fence"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_title = "mirrormap"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
suppress_warnings = ["toc.not_included"]
man_pages = [
    ("man/mirrormap.1", "mirrormap", "mirrored memory: the same pages at two or more addresses", [], 1),
    ("man/mirrormap-check.1", "mirrormap-check", "show what this kernel and this user can do", [], 1),
    ("man/mirrormap-demo.1", "mirrormap-demo", "show mirrored memory at work on real input", [], 1),
    ("man/mirrormap-maps.1", "mirrormap-maps", "show which memory of a process is mirrored", [], 1),
    ("man/mirror.3", "mirror", "map the same pages once more", [], 3),
]
man_make_section_directory = False


def _sections(_app, _what, _name, _object, _options, lines):
    """Docstrings are written for a reader of code; give their sections paragraphs and lists here."""
    written, inside, listed = [], False, False
    for line in lines:
        header = re.match(r"(Args|Returns|Raises|Attributes|Holds after):\s*(.*)", line)
        entry = re.match(r" {4}([\w\"*-][^:]{0,40}): (.*)", line)
        if header:
            inside, listed = True, not header[2]
            written += ["", f"**{header[1]}:** {header[2]}", *([""] if listed else [])]
        elif inside and line.startswith(" "):
            if listed and entry:
                written.append(f"- *{entry[1]}*: {entry[2]}")
            else:
                written.append(("  " if listed else "") + line.strip())
        else:
            if inside and line:
                written.append("")
            inside = listed = False
            written.append(line)
    lines[:] = [*written, ""]


def setup(app):
    app.connect("autodoc-process-docstring", _sections)
