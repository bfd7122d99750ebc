"""The starter recipe: a TOML file that lists all methods and their settings."""

from __future__ import annotations

import inspect
import json
import textwrap
from dataclasses import MISSING
from typing import Any

from ..methods.factors import FLOAT_NAMES
from .layouts import LAYOUTS
from .recipe import MIN_SIZE, method_names, settings_of

COMMENT_WIDTH = 100


def starter() -> str:
    """Return a starter recipe in TOML, with every method and its settings in comments."""
    lines = [
        "# A recipe for fastfactor. For each tensor the first of these that applies decides: the",
        "# rule for its full name, the skip list, the last pattern that matches, the default. Only",
        "# tensors of floats with at least two axes are compressed.",
        "",
        f"min_size = {MIN_SIZE}  # tensors with fewer weights are not compressed",
        'skip = ["*norm*"]  # tensors whose names match a pattern are not compressed',
        'if_impossible = "stop"  # or "keep", for tensors that their method cannot compress',
        '# tied = "each"  # to store equal tensors, such as tied embeddings, more than once',
        '# keep_dtype = "float16"  # of tensors that are not compressed, until they are rebuilt',
        "",
        "[default]",
        'method = "codebook"',
        "n_bits = 4",
        'granularity = "row"',
        'codebook_dtype = "float16"',
        f'# layout = "auto"  # which axes are rows, in any rule: {", ".join(LAYOUTS[1:])}',
        "",
        '# [patterns."*embed*"]  # with *, ? and [abc], as in file names',
        '# method = "low_rank"',
        "# ratio = 8  # times smaller; or max_error = 0.05, or the method's own parameter",
        "",
        '# [names."lm_head.weight"]',
        '# method = "keep"  # not compressed',
        f'# dtype = "float16"  # converted, if given: {", ".join(FLOAT_NAMES)}',
        "",
        "# Methods and their settings, with their defaults:",
    ]
    for name, method in method_names().items():
        said = f"# {name}: {(inspect.getdoc(method) or '').splitlines()[0]}"
        lines += ["#", *textwrap.wrap(said, COMMENT_WIDTH, subsequent_indent="# ")]
        for setting in settings_of(method):
            lines.append(f"#   {setting.name}{_default_text(setting)}")
    return "\n".join(lines) + "\n"


def _default_text(setting: Any) -> str:
    if setting.default is MISSING or setting.default is None:
        return ""
    return f" = {json.dumps(setting.default, default=str)}"
