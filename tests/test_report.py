"""The report writes each section into the one file that has its marks, and --check sees any difference."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def report(tmp_path, monkeypatch):
    """The report, on a copy of its files."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copytree(
        ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    shutil.copy(ROOT / "README.md", tmp_path)
    module.ROOT = tmp_path
    return module


def test_the_growth_of_sweeps_is_a_fixed_time_and_a_rate(report):
    points = [{"candidates": m, "seconds": 2.0 + 1e-6 * m} for m in (10**6, 10**7, 10**8)]
    start, slope, misfit = report.growth(points)
    assert (start, slope, misfit) == (pytest.approx(2.0), pytest.approx(1e-6), pytest.approx(0.0, abs=1e-12))
    points[1]["seconds"] *= 2.0
    assert report.growth(points)[2] > 0.2


def run(report, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["report.py", *arguments])
    return report.main()


@pytest.mark.parametrize("file", ["README.md", "benchmarks/RESULTS.md"])
def test_a_changed_number_is_seen_and_written_back(report, monkeypatch, capsys, file):
    assert run(report, monkeypatch, "--check") == 0
    path = report.ROOT / file
    text = path.read_text()
    number = "100,000 candidates in " if file == "README.md" else "100,000 candidates take "
    assert text.count(number) == 1
    path.write_text(text.replace(number, "about 100,000 candidates in "))
    assert run(report, monkeypatch, "--check") == 1
    assert file in capsys.readouterr().err
    assert run(report, monkeypatch) == 0
    assert path.read_text() == text


def test_marks_in_no_file_or_in_both_are_refused(report, monkeypatch):
    mark = "<!-- headlines: written by benchmarks/report.py -->"
    readme, results = report.ROOT / "README.md", report.ROOT / "benchmarks" / "RESULTS.md"
    text = readme.read_text()
    readme.write_text(text.replace(mark, ""))
    with pytest.raises(SystemExit, match="is in none"):
        run(report, monkeypatch)
    readme.write_text(text)
    results.write_text(results.read_text() + mark)
    with pytest.raises(SystemExit, match=r"is in README\.md, benchmarks/RESULTS\.md"):
        run(report, monkeypatch)
