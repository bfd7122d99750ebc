"""Running commands from outside and through typer's runner, and a model for them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from fastfactor.cli import app as cli
from typer.testing import CliRunner


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fastfactor", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def small_model(folder, rng):
    """An archive with two matrices and a bias."""
    path = folder / "net.npz"
    np.savez(
        path,
        fc=rng.standard_normal((64, 128)).astype(np.float32),
        norm=rng.standard_normal((64, 64)).astype(np.float32),
        bias=np.zeros(64, np.float32),
    )
    return path
