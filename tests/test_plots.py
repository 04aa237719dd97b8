"""Pictures: what is drawn is what the library computes, on the axes given; every one can be written as a file."""

import struct
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from cli_calls import document, run
from matplotlib import colors
from matplotlib.figure import Figure

import fastkl
from fastkl import plots
from fastkl._plot_parts import COLOURS, look

SPECTRUM = fastkl.Spectrum([9.0, 1.0, 0.1, 0.01], counts=[1, 3, 10, 50])
SCHEDULES = {"mine": [np.inf, 5.0, 1.0, 0.0], "other": [80.0, 3.0, 0.5, 0.1]}


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


def lines(ax):
    """Labelled lines by label."""
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def rendered(ax):
    """The picture's pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_levels_are_those_given_and_ends_are_marked(ax):
    assert plots.levels(SCHEDULES, ax) is ax
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["mine"].get_xydata(), [[1, 5.0], [2, 1.0]])
    np.testing.assert_array_equal(drawn["other"].get_ydata(), SCHEDULES["other"])
    marks = [line.get_xydata().tolist() for line in ax.get_lines() if line.get_linestyle() == "None"]
    assert [[3.0, 0.0]] in marks  # 0 on the bottom edge
    assert [[0.0, 1.0]] in marks  # inf on the top edge
    assert "bottom edge: 0, top edge: infinity" in ax.get_title()
    assert "noise-to-signal" in ax.get_ylabel()


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_ratios_are_variances_over_the_data(ax, sampler):
    plots.ratios(SPECTRUM, SCHEDULES, sampler, "ve", ax)
    for name, sigmas in SCHEDULES.items():
        line = lines(ax)[name]
        eigenvalues = np.sort(SPECTRUM.eigenvalues)
        variance = fastkl.output_variance(eigenvalues, sigmas, sampler, "ve")
        np.testing.assert_array_equal(line.get_xdata(), eigenvalues)
        np.testing.assert_allclose(line.get_ydata(), variance / (eigenvalues + sigmas[-1] ** 2), rtol=1e-15)
    assert "squared" in ax.get_xlabel()


def test_convergence_approaches_its_expansion_and_shows_the_search(ax):
    schedule, numbers = fastkl.NoiseSchedule.tangent(0.3), [8, 32, 128]
    found = fastkl.search(SPECTRUM, schedule, [8, 16])
    plots.convergence(SPECTRUM, schedule, numbers, found, ax)
    drawn = lines(ax)
    exact = drawn["tangent, even times"].get_ydata()
    assert exact[0] == fastkl.divergence(SPECTRUM, fastkl.discretize.uniform(schedule, 8))
    for order, gap in ((2, 0.02), (4, 1e-4)):
        expanded = drawn[f"its expansion to N^-{order}"].get_ydata()
        assert expanded[-1] == pytest.approx(exact[-1], rel=gap)
    best = drawn["best levels, proved optimal"]
    np.testing.assert_array_equal(best.get_xydata(), [[n.steps, n.value] for n in found])
    assert "nats" in ax.get_ylabel()


def test_a_spectrum_by_rank_with_its_nodes(ax):
    data = fastkl.Spectrum.power_law(500, 1.2)
    plots.spectrum(data, 1e-6, ax)
    steps = lines(ax)[f"500 entries, dim {500:,}"]
    np.testing.assert_array_equal(steps.get_ydata()[:-1], data.eigenvalues)
    nodes = ax.collections[0].get_offsets()
    assert len(nodes) == len(data.compress(1e-6))
    assert "relative error" in ax.collections[0].get_label()
    # a node lies in the midst of the eigenvalues that it stands for
    assert np.interp(nodes[:, 0], np.arange(0.5, 500), data.eigenvalues) == pytest.approx(
        nodes[:, 1], rel=0.5
    )


def test_nodes_of_the_mean_and_eigenvalues_of_zero_are_left_out(ax):
    data = fastkl.Spectrum([4.0, 2.0, 0.0], mean=[0.0, 1.0, 0.0])
    plots.spectrum(data, None, ax)
    assert ax.get_lines()[0].get_ydata().tolist() == [4.0, 2.0, 2.0]
    assert not ax.collections


def test_a_front_counts_evaluations_and_shows_open_bounds(ax):
    found = fastkl.search(SPECTRUM, fastkl.NoiseSchedule.ddpm_linear(), range(2, 6))
    fast = fastkl.search(SPECTRUM, fastkl.NoiseSchedule.cosine(), range(2, 6), prove=False)
    open_ones = [best for best in fast if not best.proved_optimal]
    plots.front({"linear": found, "cosine": fast}, ax)
    drawn = lines(ax)
    np.testing.assert_array_equal(
        drawn["linear, proved optimal"].get_xydata(), [[b.steps, b.value] for b in found]
    )
    assert len(open_ones) == 4
    bounds = drawn["cosine, proved lower bound"].get_ydata()
    np.testing.assert_array_equal(bounds, [best.lower_bound for best in open_ones])


def test_colours_differ_for_people_who_do_not_see_red_or_green():
    """Simulated after Vienot, Brettel and Mollon (1999): linear RGB to what a protanope or deuteranope tells apart."""
    protan = [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]
    deutan = [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]
    linear = np.array([colors.to_rgb(c) for c in COLOURS]) ** 2.2
    for matrix in (np.eye(3), np.array(protan), np.array(deutan)):
        seen = np.clip(linear @ np.array(matrix).T, 0.0, 1.0) ** (1 / 2.2)
        gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
        assert gaps.min() > 0.1
    looks = {(s["color"], s["marker"], str(s["linestyle"])) for s in map(look, range(16))}
    assert len(looks) == 16


@pytest.mark.parametrize("draw", [
    lambda ax: plots.levels(SCHEDULES, ax),
    lambda ax: plots.ratios(SPECTRUM, SCHEDULES, ax=ax),
    lambda ax: plots.convergence(SPECTRUM, fastkl.NoiseSchedule.flow(), [4, 8], ax=ax),
    lambda ax: plots.spectrum(SPECTRUM, ax=ax),
    lambda ax: plots.front({"all": fastkl.search(SPECTRUM, fastkl.NoiseSchedule.edm(), [2, 3])}, ax),
], ids=["levels", "ratios", "convergence", "spectrum", "front"])  # fmt: skip
def test_every_picture_is_drawn_with_words_on_both_axes(ax, draw):
    blank = rendered(Figure(layout="constrained").subplots())
    draw(ax)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.get_legend() is not None
    assert (rendered(ax) != blank).mean() > 0.005


def test_a_new_figure_is_made_where_there_are_no_axes():
    import matplotlib.pyplot as plt

    ax = plots.levels(SCHEDULES)
    assert ax.figure.number in plt.get_fignums()
    plt.close(ax.figure)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: plots.levels([1.0, 0.0]), TypeError, "schedules: must be a mapping of names, got list"),
    (lambda: plots.levels({}), ValueError, "schedules: must not be empty"),
    (lambda: plots.levels({"a": [1.0, 2.0]}), ValueError, r"schedules\['a'\]\[1\] = 2.0"),
    (lambda: plots.levels({"a": [[2.0, 1.0]]}), ValueError, r"schedules\['a'\]: must have shape \(N\+1,\)"),
    (lambda: plots.levels(SCHEDULES, 3), TypeError, "ax: must be Matplotlib axes, got int"),
    (lambda: plots.ratios([0.0], SCHEDULES), ValueError, "spectrum: must have an eigenvalue above 0"),
    (lambda: plots.spectrum([0.0]), ValueError, "spectrum: must have an eigenvalue above 0"),
    (lambda: plots.convergence([1.0], fastkl.NoiseSchedule.tangent(1.0), [1]), ValueError, r"steps\[0\] = 1"),
    (lambda: plots.front({"a": []}), ValueError, "results: must hold results of one metric, got none"),
])  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def size_of_png(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("command", [
    ["search", "--steps", "4"], ["search", "--steps", "3-5", "--schedule", "flow"], ["rank", "--steps", "4",
     "--candidates-per-family", "20"], ["spectrum", "digits"],
])  # fmt: skip
def test_the_command_line_draws(command, tmp_path, capsys):
    file = tmp_path / "picture.png"
    document(capsys, *command, "--plot", str(file))
    width, height = size_of_png(file)
    assert width >= 900
    assert height == 690


def test_scores_are_drawn_as_a_vector_picture(tmp_path, capsys):
    levels, file = tmp_path / "levels.json", tmp_path / "picture.svg"
    levels.write_text("[[10, 1, 0], [10, 2, 0]]")
    document(capsys, "score", str(levels), "--plot", str(file))
    assert ElementTree.parse(file).getroot().tag.endswith("svg")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("name", "message"), [
    ("picture.gif", "must end in .pdf, .png, .svg"), ("nowhere/picture.png", "there is no folder"),
])  # fmt: skip
def test_a_picture_that_cannot_be_written_is_an_error_before_the_work(name, message, tmp_path, capsys):
    status, out, err = run(capsys, "search", "--plot", str(tmp_path / name), "--json")
    assert (status, out) == (2, "")
    assert message in err
