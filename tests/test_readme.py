"""The README's examples run in order as one script and print what their comments say."""

from __future__ import annotations

import re
from pathlib import Path

import fastfactor

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SCRIPT = "\n".join(re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE))


def test_every_kernel_has_an_example():
    calls = [name for name in fastfactor.__all__ if name.islower() and name[0] != "_"]
    calls.remove("show_config")
    for call in (*calls, "balanced=True", "CSR", "PackedCodes.pack", "SparseCodes"):
        assert call in SCRIPT


def test_examples_print_what_they_say(capsys):
    said = re.findall(r"^print\(.*\)  # (.*)$", SCRIPT, re.MULTILINE)
    assert len(said) == SCRIPT.count("print(")
    exec(compile(SCRIPT, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == said
