"""PEP 517 build backend of fastkl: setuptools, and the place where CUDA sources will be compiled ahead of time.

Every hook is setuptools' own. They are re-exported through an in-tree backend so that the ahead-of-time step has
one place to live and needs no change to pyproject.toml when it comes.
"""

from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]
