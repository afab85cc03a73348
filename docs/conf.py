"""How the documentation is built: ``make docs``."""

import os
import sys
import tomllib
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

# Examples run on one thread: the build is as fast on a busy machine, and repeatable.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# Nothing is downloaded, and the progress bars of others stay out of the pages.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

project = "sklearn_fpe"
author = "sklearn_fpe developers"
copyright = author
release = installed_version("sklearn-fpe")
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "sphinx.ext.viewcode",
    "changelog",
    "drawn",
    "mathml",
    "measured",
]
# The address of the repository stands in pyproject.toml alone; pages write |issues|.
with open(HERE.parent / "pyproject.toml", "rb") as file:
    hooks = tomllib.load(file)["tool"]["hatch"]["metadata"]["hooks"]
repository = hooks["custom"]["repository"]
rst_prolog = f".. |issues| replace:: {repository}/issues\n"
exclude_patterns = ["_build", "_ext", "_templates", "**/GALLERY_HEADER.rst"]
templates_path = ["_templates"]
default_role = "code"

# Signatures are spelled as one line per parameter where they are long.
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"(^|[\\/])_\w+\.py$",
    "within_subsection_order": "gallery_order.key",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_fpe",),
    "image_srcset": ["2x"],
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    # Estimators' diagrams have colours of their own, which the dark theme breaks.
    "capture_repr": (),
    "write_computation_times": False,
    "reset_modules": ("matplotlib", "gallery_style.enlarge_text"),
}

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "sklearn_fpe"
html_static_path = ["_static"]
html_css_files = ["sklearn_fpe.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "sklearn_fpe"},
    "navbar_align": "left",
    "navbar_end": ["navbar-icon-links", "theme-switcher"],
    "icon_links": [
        {"name": "Source", "url": repository, "icon": "fa-brands fa-github"},
    ],
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc", "sg_download_links"],
    "footer_start": ["version"],
    "footer_end": ["copyright"],
    "show_prev_next": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# Pages without a section of their own need no empty column at the left.
html_sidebars = {"index": [], "install": [], "changelog": [], "results": []}
