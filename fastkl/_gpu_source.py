"""The CUDA sources as text, for whoever compiles them. Standard library only: the build backend loads this file.

One text and not include paths, because what is compiled is kept by its text: CuPy's cache on disk does not notice a
change in an included file. Ahead of time all kernels are one text; at first use each is compiled with its part alone.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

__all__ = ["FLAGS", "OLDEST", "digest", "instances", "parts", "unit"]

# a fused multiply-add is one where it is written; small float32 numbers are 0, as CuPy has it whether asked or not
FLAGS = ("-std=c++17", "-fmad=false", "-ftz=true")
OLDEST = 80  # compute capability, times ten, that the PTX in a wheel is made for
MAIN = "fastkl.cu"
INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)
KERNEL = re.compile(r"^(?:KERNEL|TILE_SUMS\()\s*(\w+)[(,]", re.MULTILINE)
INSTANCE = re.compile(r"^TILE_SUMS\((\w+),.*\n", re.MULTILINE)


def unit(folder: Path, main: str = MAIN) -> str:
    """Return the text of the main source in `folder` with every file it includes in place, each once."""
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        source = (folder / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return INCLUDE.sub(lambda found: text(found[1]), source)

    return text(main)


def parts(folder: Path) -> dict[str, str]:
    """Return for each kernel the text to compile it with: a file of entry points, or its instance of those there."""
    found = {}
    for main in INCLUDE.findall((folder / MAIN).read_text(encoding="utf-8")):
        text = unit(folder, main)
        made = INSTANCE.findall(text)
        for name in instances(text):
            found[name] = (
                INSTANCE.sub(lambda m, own=name: m[0] if m[1] == own else "", text) if made else text
            )
    return found


def digest(source: str) -> str:
    """Return what tells whether a compiled file belongs to this source."""
    return hashlib.sha256("\n".join((source, *FLAGS)).encode()).hexdigest()


def instances(source: str) -> list[str]:
    """Return the names of the kernels, sorted."""
    return sorted(name for name in KERNEL.findall(source) if name != "NAME")
