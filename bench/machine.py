"""What a result depends on besides the code under test: processor, versions, commit, date."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cases import THREADS

HERE = Path(__file__).resolve().parent


def describe() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "memory_gb": memory_gb(),
            "threads_used": THREADS,
        },
        "versions": versions(),
    }


def commit() -> dict[str, Any]:
    """The commit measured, and whether anything but results differed from it."""
    revision = git("rev-parse", "--verify", "--quiet", "HEAD")
    changes = git("status", "--porcelain", "--", ":/", f":(exclude){HERE / 'results'}")
    return {"id": revision or None, "dirty": bool(changes)}


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def cpu() -> dict[str, str]:
    """Model, family and widest vector set: a virtual machine often shortens the model's name."""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.*)$", cpuinfo(), re.MULTILINE))
    return {
        "model": found.get("model name") or platform.processor() or platform.machine(),
        "family": found.get("cpu family", ""),
        "model_number": found.get("model", ""),
        "vectors": vectors(),
    }


def old_openblas() -> dict[str, str]:
    """The setting that OpenBLAS before 0.3.30 needs on processors younger than itself.

    faiss-cpu and spams-bin carry 0.3.15, which takes a processor of 2024 for one of 2007 and
    multiplies at half the speed or less (kmeans b and c, omp a to c). NumPy's own needs nothing.
    """
    core = {"avx512f": "SkylakeX", "avx2": "Haswell"}.get(vectors())
    return {"OPENBLAS_CORETYPE": core} if core else {}


def vectors() -> str:
    text = cpuinfo()
    return next((name for name in ("avx512f", "avx2", "avx", "sse4_2") if f" {name} " in text), "")


def cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def memory_gb() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)


def versions() -> dict[str, str | None]:
    """Versions of Python, fastfactor and every pinned rival, None where one is missing."""
    pinned = re.findall(
        r"^([\w-]+)==", (HERE / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    return {"python": platform.python_version()} | {
        name: installed(name) for name in ["fastfactor", *pinned]
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
