"""What importing loads, what the top level offers, and that the kernels are never imported as a top-level module."""

import ast
import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import fastkl

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fastkl", "kernels", "tests", "benchmarks", "setup_ext", ".ci")
# Section 4 of the design, as far as it is built.
PROMISED = {
    "Spectrum": {
        *("from_covariance", "from_denoising_errors", "from_images", "from_samples"),
        *("compress", "power_law", "preset"),
    },
    "SpectrumMoments": {"add", "from_chunks", "spectrum"},
    "RankDeficientWarning": set(),
    "NoiseSchedule": {
        *("ddpm_linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow", "tangent"),
        *("from_alphas_cumprod", "from_betas", "sigmas"),
    },
    "discretize": {"uniform", "quadratic", "power_uniform", "karras", "exponential", "tangent", "geodesic"},
    "samplers": {"ddim", "heun", "multistep", "names", "nfe", "singlestep", "steps_for", "unipc"},
    "divergence": set(),
    "search": set(),
    "SearchResult": {"as_dict"},
    "sweep": set(),
    "SweepResult": {"sigmas", "to_pandas", "to_polars"},
    "exhaustive": set(),
    "ExhaustiveResult": {"merge"},
    "output_variance": set(),
    "trajectory": set(),
    "theory": {"best_gamma", "expansion", "geodesic_levels", "tangent_gamma"},
    "tangent_gamma": set(),
    "best_gamma": set(),
    "expansion": set(),
    "fit_denoising_errors": set(),
    "DenoisingFit": set(),
    "PoorFitWarning": set(),
}


def loaded_after(code, cwd):
    """Run `code` in a new process and return the top-level names of what it has imported."""
    script = f"{code}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


SWEEPS = {"pyarrow", "pydantic", "dask", "distributed", "pandas", "polars"}
TOOLS = {"torch", "diffusers", "PIL", "matplotlib"}
HEAVY = {"numba", "llvmlite", "scipy", "cupy", "rich", "mpmath", "pytest"} | SWEEPS | TOOLS


@pytest.mark.parametrize(
    "code",
    [
        "import fastkl",
        "from fastkl import Spectrum, NoiseSchedule, discretize",
        "import fastkl; fastkl.divergence, fastkl.output_variance, fastkl.trajectory, fastkl.__all__, dir(fastkl)",
        "import fastkl.evaluate, fastkl.spectrum, fastkl.schedule, fastkl.discretize, fastkl.theory, fastkl.samplers",
        "import fastkl; fastkl.Spectrum.preset('mnist'); fastkl.NoiseSchedule.ddpm_linear().sigmas([999, 0])",
        "import fastkl.kernels.reference",
        "import fastkl; fastkl.sweep, fastkl.SweepResult",
        "import fastkl.cli.parser; fastkl.cli.parser.build_parser().parse_args(['sweep', 'x.toml'])",
        "import fastkl.plots, fastkl.integrations.k_diffusion, fastkl.cli.parser; fastkl.cli.parser.build_parser()",
        "import fastkl.integrations.diffusers, fastkl.integrations.audit, fastkl.integrations.comfyui_fastkl",
    ],
)
def test_importing_loads_nothing_heavy(code, tmp_path):
    assert not HEAVY & loaded_after(code, tmp_path)


def test_bad_arguments_are_refused_before_numba_is_loaded(tmp_path):
    code = """
import ctypes
import fastkl
def no_library(name):  # as on a machine without a driver
    raise OSError(name)
ctypes.CDLL = no_library
try:
    fastkl.divergence([1.0], [1.0, 2.0])
except ValueError:
    pass
try:
    fastkl.divergence([1.0], [2.0, 1.0], backend="gpu")
except RuntimeError:
    pass
"""
    assert not HEAVY & loaded_after(code, tmp_path)


def test_a_divergence_loads_numba_and_no_optional_package(tmp_path):
    loaded = loaded_after("import fastkl; fastkl.divergence([1.0], [2.0, 0.0])", tmp_path)
    assert "numba" in loaded
    assert not ({"cupy", "rich", "matplotlib", "mpmath", "pytest"} | SWEEPS) & loaded


def test_all_names_can_be_imported():
    assert len(set(fastkl.__all__)) == len(fastkl.__all__)
    assert sorted(fastkl.__all__) == dir(fastkl)
    for name in fastkl.__all__:
        assert getattr(fastkl, name) is getattr(fastkl, name)
    namespace = {}
    exec("from fastkl import *", namespace)
    assert set(fastkl.__all__) <= set(namespace)
    with pytest.raises(AttributeError, match=r"module 'fastkl' has no attribute 'kl'"):
        _ = fastkl.kl


def test_the_top_level_offers_what_is_promised():
    assert set(PROMISED) | {"__version__", "warmup"} == set(fastkl.__all__)
    for name, members in PROMISED.items():
        owner = getattr(fastkl, name)
        assert callable(owner) or isinstance(owner, types.ModuleType)
        for member in members:
            assert callable(getattr(owner, member)), f"{name}.{member}"


@pytest.mark.parametrize(
    "module",
    [
        "_exhaustive",
        "_search",
        "evaluate",
        "moments",
        "spectrum",
        "sweeps",
        "sweeps.result",
        "schedule",
        "discretize",
        "samplers",
        "theory",
    ],
)
def test_all_of_each_module_exists_and_is_documented(module):
    loaded = importlib.import_module(f"fastkl.{module}")
    for name in loaded.__all__:
        value = getattr(loaded, name)
        assert not callable(value) or (value.__doc__ or "").strip(), name


def test_the_version_is_that_of_the_installed_distribution():
    from importlib.metadata import version

    assert version("fastkl") == fastkl.__version__


def imports_of_top_level_kernels(source):
    """Line numbers that import `kernels`, or a module in it, under that name."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__", "importorskip", "run_module"):
                names = [str(node.args[0].value)]
        if any(name.split(".")[0] == "kernels" for name in names):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "source",
    [
        "import kernels",
        "import os, kernels as k",
        "from kernels import reference",
        "from kernels.ddim_horner import TILE",
        "def f():\n    import kernels.reference",
        "importlib.import_module('kernels.compiling')",
        "__import__('kernels')",
    ],
)
def test_the_lint_below_can_fail(source):
    assert imports_of_top_level_kernels(source)


@pytest.mark.parametrize(
    "source", ["import fastkl.kernels", "from fastkl.kernels import reference", "kernels = 1"]
)
def test_the_lint_below_lets_the_right_name_pass(source):
    assert not imports_of_top_level_kernels(source)


def test_kernels_is_imported_nowhere_as_a_top_level_module():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 30
    found = {str(path.relative_to(ROOT)): imports_of_top_level_kernels(path.read_text()) for path in files}
    assert not {path: lines for path, lines in found.items() if lines}


def test_kernels_are_loaded_once_under_one_name(tmp_path):
    code = """
import fastkl
fastkl.divergence([1.0], [2.0, 0.0])
import sys
assert "fastkl.kernels.ddim_horner" in sys.modules
assert "kernels" not in sys.modules
"""
    assert "kernels" not in loaded_after(code, tmp_path)
    if os.path.isdir(ROOT / "kernels"):  # also where the folder is in reach
        assert "kernels" not in loaded_after(f"import sys; sys.path.append({str(ROOT)!r})\n{code}", tmp_path)
