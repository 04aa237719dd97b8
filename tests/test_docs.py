"""Documentation: every example runs, every public docstring names its parameters, and the README's blocks execute."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from numpydoc.validate import validate

import fastkl
from fastkl import plots
from fastkl.integrations import audit, diffusers, k_diffusion

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    module.name
    for package in ("fastkl", "fastkl.integrations", "fastkl.kernels", "fastkl.sweeps")
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
    if not module.name.endswith("__main__")
)
# Section order, capital letters and full stops are a matter of the lint; these are about content.
REQUIRED = {
    "PR01": "a parameter is not documented",
    "PR02": "a documented parameter does not exist",
    "PR03": "parameters are in another order than in the signature",
    "PR04": "a parameter has no type",
    "PR07": "a parameter has no description",
    "RT01": "no Returns section",
    "GL08": "no docstring",
    "SS06": "the summary is longer than a line",
}


def public_objects():
    """Yield the dotted names of all public functions, classes and methods."""
    homes = [(fastkl, [name for name in fastkl.__all__ if name != "__version__"])]
    homes += [(home, home.__all__) for home in (fastkl.discretize, fastkl.samplers, plots)]
    homes += [(home, home.__all__) for home in (audit, diffusers, k_diffusion)]
    for home, names in homes:
        for name in names:
            thing = getattr(home, name)
            if inspect.isfunction(thing):
                yield f"{thing.__module__}.{name}"
            elif inspect.isclass(thing):
                yield f"{thing.__module__}.{name}"
                for member, value in inspect.getmembers(thing):
                    inherited = member.startswith("_") or hasattr(BaseException, member)
                    if not inherited and (inspect.isroutine(value) or isinstance(value, property)):
                        yield f"{thing.__module__}.{name}.{member}"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_examples_exist():
    finder = doctest.DocTestFinder()
    count = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert count > 30


@pytest.mark.parametrize("name", sorted(set(public_objects())))
def test_public_docstring_is_complete(name):
    found = {code: text for code, text in validate(name)["errors"] if code in REQUIRED}
    if "SS06" in found and "." in name:
        summary = inspect.getdoc(eval_name(name)).split("\n\n")[0]
        assert "\n" not in summary, f"{name}: {REQUIRED['SS06']}"
        del found["SS06"]
    assert not found, f"{name}: {found}"


def eval_name(name):
    """Return the object of a dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(name)


def test_functions_have_examples():
    missing = [
        name
        for name in public_objects()
        if inspect.isfunction(eval_name(name)) and ">>>" not in (inspect.getdoc(eval_name(name)) or "")
    ]
    assert not missing


def test_readme_python_blocks_run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where files are written
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 2
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert printed.count("\n") >= 6
    assert "nan" not in printed.lower()


def test_readme_commands_run(capsys, monkeypatch, tmp_path):
    from diffusers import EulerDiscreteScheduler

    from fastkl.cli import main

    monkeypatch.chdir(tmp_path)
    EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    commands = [line.split() for block in blocks for line in block.splitlines()]
    assert len(commands) >= 4
    for command in commands:
        assert command[0] == "fastkl"
        assert main(command[1:]) == 0, command
        assert capsys.readouterr().out.count("\n") > 5
    assert {path.name for path in tmp_path.iterdir()} >= {"best.json", "levels.png", "audit.png"}


def test_readme_blocks_are_all_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    kinds = re.findall(r"^```(.*)$", text, flags=re.MULTILINE)[::2]
    # sh blocks are run by .ci/run, the toml block by test_cli_sweep.py; text needs a GPU
    assert set(kinds) == {"sh", "python", "console", "toml", "text"}
    assert kinds.count("sh") == 2


def test_readme_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"fastkl\.([a-z_]\w*)\(", text)):
        assert hasattr(fastkl, name), name
    for path in re.findall(r"[`(]((?:benchmarks|fastkl|tests)/[\w/.]+)[`)]", text):
        assert (ROOT / path).exists(), path
