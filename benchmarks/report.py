"""docs/benchmarks.md: each benchmark writes its own section and leaves the others as they are."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_INTRODUCTION = """# Benchmarks

Written by `make bench`; each section names the command that makes it anew. What is compared ran in turns within one
process, so ratios hold where single times do not. Every figure of speed or size stands beside the agreement measured
in the same run. A bound that is not met says so.
"""


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Put a section (Markdown, from its `##` on) in the place of the one of this name, or at the end."""
    old = page.read_text(encoding="utf-8") if page.exists() else _INTRODUCTION
    section = f"<!-- {name} -->\n{text.strip()}\n<!-- end of {name} -->\n"
    marks = re.compile(rf"<!-- {re.escape(name)} -->\n.*?<!-- end of {re.escape(name)} -->\n", re.DOTALL)
    new = marks.sub(lambda _: section, old) if marks.search(old) else f"{old.rstrip()}\n\n{section}"
    page.write_text(new, encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def versions(*packages: str) -> str:
    """`torch 2.13.0, ...` of what runs here."""
    found = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return ", ".join([f"Python {platform.python_version()}", *found])


def machine() -> str:
    """The machine in general words: what decides which kernels run, and how many at once."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text(encoding="utf-8", errors="replace").split()) if info.exists() else set()
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "asimddp": "dot products"}
    has = list(dict.fromkeys(text for flag, text in known.items() if flag in flags))
    without = [] if any("vnni" in flag for flag in flags) else ["no VNNI"]
    cores = os.cpu_count()
    features = ", ".join(has + without)
    return f"{platform.system()} on {platform.machine()}, {cores} cores, {features}; one thread unless said"
