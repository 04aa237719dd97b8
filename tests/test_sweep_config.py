"""Bad configurations: refused before any work, with the key's path and the rule."""

import subprocess
import sys

import numpy as np
import pytest
from sweeps import GAMMAS, small

import fastkl

KARRAS = {"family": "karras"}
ZERO = fastkl.Spectrum([1.0, 0.0])

BAD = [
    ({"step": [3]}, "step: no such key"),
    ({"steps": None}, "steps: one of the two keys steps and nfe must be given"),
    ({"nfe": [4]}, "steps: one of the two keys steps and nfe must be given"),
    ({"steps": [0]}, "steps[0]: must be greater than or equal to 1 (got 0)"),
    ({"steps": [4.5]}, "steps[0]: must be integer (got 4.5)"),
    ({"steps": [4, 4]}, "steps[1]: must not be given twice (got 4)"),
    ({"steps": []}, "steps: must hold at least 1 (got [])"),
    ({"steps": "ten"}, "steps[0]: must be integer (got 'ten')"),
    ({"metrics": ["kl", "fid"]}, "metrics[1]: must be 'kl', 'reverse_kl', 'jeffreys' or 'w2' (got 'fid')"),
    ({"priors": ["vq"]}, "priors[0]: must be"),
    ({"rtol": -1.0}, "rtol: must be greater than or equal to 0 (got -1.0)"),
    ({"rtol": float("nan")}, "rtol: must be"),
    ({"rtol": 0.2}, "rtol: must be less than or equal to 0.1 (got 0.2)"),
    ({"top": 0}, "top: must be greater than or equal to 1 (got 0)"),
    ({"chunk": 0}, "chunk: must be greater than or equal to 1 (got 0)"),
    ({"full": 1}, "full: must be boolean (got 1)"),
    ({"per": ["colour"]}, "per[0]: must be 'spectrum', 'schedule'"),
    ({"families": []}, "families: there must be at least one family or one search"),
    ({"families": [{"family": "carras"}]}, "families[0]: family must be one of uniform, quadratic"),
    ({"families": [{"rho": 7.0}]}, "families[0]: family must be one of uniform, quadratic"),
    ({"families": [KARRAS, {**KARRAS, "rh": 7.0}]}, "families[1].rh: no such key"),
    ({"families": [{**KARRAS, "rho": -7.0}]}, "families[0].rho: must be above 0 (got -7.0)"),
    ({"families": [{**KARRAS, "rho": [7.0, "x"]}]}, "families[0].rho[1]: must be a number"),
    ({"families": [{**KARRAS, "rho": [7.0, True]}]}, "families[0].rho[1]: must be a number"),
    ({"families": [{**KARRAS, "rho": []}]}, "families[0].rho: must hold at least one number"),
    ({"families": [{**KARRAS, "rho": float("inf")}]}, "families[0].rho: must be finite (got inf)"),
    ({"families": [{**KARRAS, "rho": {"start": 1.0, "stop": 2.0}}]}, "families[0].rho.num: must be given"),
    (
        {"families": [{**KARRAS, "rho": {"start": 1.0, "stop": 2.0, "num": 0}}]},
        "families[0].rho.num: must be greater than or equal to 1 (got 0)",
    ),
    (
        {"families": [{**KARRAS, "rho": {"start": 1.0, "stop": 2.0, "num": 3, "step": 1}}]},
        "families[0].rho.step: no such key",
    ),
    (
        {"families": [{**KARRAS, "rho": {"start": -1.0, "stop": 2.0, "num": 3, "spacing": "log"}}]},
        "families[0].rho: a range with spacing = 'log' must begin and end above 0",
    ),
    (
        {"families": [{**KARRAS, "rho": {"start": 1.0, "stop": 2.0, "num": 1}}]},
        "families[0].rho: a range of one value must begin and end with it",
    ),
    (
        {"families": [{**KARRAS, "sigma_min": 0.001}]},
        "families[0].sigma_min: must be 0 or at least 0.002, where",
    ),
    ({"families": [{**KARRAS, "sigma_max": 81.0}]}, "families[0].sigma_max: must be at most 80.0, where"),
    ({"families": [{**KARRAS, "sigma_min": 90.0}]}, "families[0].sigma_min: must not be above 80.0"),
    (
        {"families": [{**KARRAS, "sigma_min": {"start": 0.0, "stop": 1.0, "num": 5}}]},
        "families[0].sigma_min: a range must not contain 0",
    ),
    (
        {"families": [{"family": "exponential", "sigma_min": 0.0}]},
        "families[0].sigma_min: must be above 0 (got 0.0)",
    ),
    (
        {"families": [{**KARRAS, "snap": True}]},
        "families[0].snap: must not be true for a continuous schedule",
    ),
    (
        {"families": [{"family": "uniform", "spacing": ["leading"]}]},
        "families[0].spacing: must be linspace alone for a continuous schedule",
    ),
    (
        {"families": [{"family": "random", "num": 3}]},
        "families[0].seed: must be given",
    ),
    (
        {"families": [{"family": "random", "num": 3, "seed": 1, "sigma_min": [0.1, 0.2]}]},
        "families[0].sigma_min: must be one number",
    ),
    (
        {"schedules": ["flow"], "families": [KARRAS]},
        "families[0].sigma_max: must be given, because schedules[0]",
    ),
    (
        {"schedules": ["cosine"], "families": [{"family": "quadratic", "snap": False}]},
        None,  # allowed: this cosine schedule ends in a finite level
    ),
    ({"schedules": []}, "schedules: must hold at least 1 (got [])"),
    ({"schedules": ["linear"]}, "schedules[0].kind: must be one of ddpm_linear"),
    ({"schedules": [{"shift": 3}]}, "schedules[0].kind: must be given"),
    ({"schedules": [{"kind": "flow", "shifts": 3}]}, "schedules[0].shifts: no such key; there are shift"),
    ({"schedules": ["edm", {"kind": "edm", "sigma_min": -1}]}, "schedules[1]: sigma_min = -1"),
    ({"schedules": ["edm", "edm"]}, "schedules[1].name: must not be that of another schedule (got 'edm')"),
    ({"schedules": [{"kind": "tangent"}]}, "schedules[0].gamma: must be given"),
    ({"spectra": []}, "spectra: must hold at least 1 (got [])"),
    ({"spectra": ["minst"]}, "spectra[0].preset: name = 'minst': must be one of"),
    ({"spectra": ["mnist", "mnist"]}, "spectra[1].name: must not be that of another spectrum"),
    ({"spectra": [{"name": "x"}]}, "spectra[0]: must have just one of the keys preset, file"),
    ({"spectra": [{"preset": "mnist", "flor": 1}]}, "spectra[0].flor: no such key"),
    ({"spectra": [{"preset": "mnist", "floor": -1.0}]}, "spectra[0].floor: floor = -1.0: must be at least 0"),
    ({"spectra": [{"file": "nothing.npy"}]}, "spectra[0].file: nothing.npy: No such file or directory"),
    ({"spectra": [{"file": "nothing*.npy"}]}, "spectra[0].file: no file matches 'nothing*.npy'"),
    ({"spectra": [{"power_law": {"exponent": 1.0}}]}, "spectra[0].power_law.dim: must be given"),
    ({"spectra": [{"power_law": {"dim": 9}}]}, "spectra[0].power_law.exponent: must be given"),
    (
        {"spectra": [{"power_law": {"dim": 9, "exponent": [1.0, 400.0]}}]},
        "spectra[0].power_law: exponent = 400.0: dim**abs(exponent) must not exceed 1e60",
    ),
    (
        {"spectra": [np.array([1.0, -1.0])]},
        "spectra[0].spectrum: spectrum[1] = -1.0: a variance must be 0 or within",
    ),
    (
        {"spectra": [ZERO]},
        "metrics[0]: kl is not finite for an eigenvalue of 0, which the spectrum 'spectra[0]' has",
    ),
    (
        {"spectra": [ZERO], "metrics": ["w2"], "families": [{"family": "geodesic"}]},
        "families[0]: geodesic needs eigenvalues above 0",
    ),
    ({"samplers": ["ddim", "euler_b"]}, "samplers[1]: sampler = 'euler_b': must be one of"),
    ({"samplers": [{"function": "get"}]}, "samplers[0].function: must be one of ddim"),
    ({"samplers": [{"function": "ddim", "et": 1}]}, "samplers[0].et: no such key; there are eta"),
    ({"samplers": [{"function": "ddim", "eta": -1.0}]}, "samplers[0]: eta = -1.0"),
    ({"steps": [2], "samplers": ["prk"]}, "steps[0]: must be at least"),
    ({"steps": None, "nfe": [2], "samplers": ["prk"]}, "nfe[0]: must be at least"),
    (
        {"steps": [1001], "schedules": ["ddpm_linear"]},
        "steps[0]: must be at most 1000, the timesteps of schedules[0]",
    ),
    (
        {"schedules": ["flow"], "samplers": ["lms"], "families": [{"family": "uniform"}]},
        "samplers[0]: lms needs a finite first level; families[0] on schedules[0] starts at inf",
    ),
    ({"backend": "tpu"}, "backend: must be 'auto', 'cpu' or 'gpu' (got 'tpu')"),
    ({"searches": [{"proof": True}]}, "searches[0].proof: no such key"),
    (
        {"searches": [{}], "schedules": ["flow"], "steps": [3, 1], "metrics": ["w2"]},
        "steps[1]: must be within 2 and 1000 for searches[0]",
    ),
    (
        {"searches": [{"grid": 10, "min_spacing": 3}], "steps": [4, 5]},
        "steps[1]: must be within 1 and 4 for searches",
    ),
    (
        {"samplers": [{"function": "prk", "middles": [3.0, 2.0, 1.0]}]},
        "samplers[0]: prk(middles=(3.0, 2.0, 1.0)) has",
    ),
    (
        {"families": [{**KARRAS, "rho": {"start": 1.0, "stop": 10**400, "num": 3}}]},
        "families[0].rho.stop: must be",
    ),
    (
        {"families": [{**KARRAS, "rho": 10**400}]},
        "families[0].rho: must be finite (got a number above 1e308)",
    ),
    ({"families": [{**KARRAS, "rho": [7.0, 10**400]}]}, "families[0].rho[1]: must be finite"),
    ({"spectra": [{"preset": "mnist", "floor": 10**400}]}, "spectra[0].floor: "),
    ({"schedules": [{"kind": "edm", "sigma_max": 10**400}]}, "schedules[0]: "),
    (
        {"families": [{**KARRAS, "rho": {"start": -1e308, "stop": 1e308, "num": 3}}]},
        "families[0].rho: a range must not be longer than the largest number",
    ),
    (
        {"spectra": [{"power_law": {"dim": 9, "exponent": {"start": 0.5, "stop": 2.0, "num": 10**14}}}]},
        "spectra[0].power_law.exponent: must be at most 1000000 values (got 100000000000000)",
    ),
    ({"samplers": [{"function": "ddim", "name": 3}]}, "samplers[0].name: must be a string (got 3)"),
    (
        {"samplers": [{"function": "ddim", "eta": 0.5, "name": "ddim"}]},
        "samplers[0].name: must not be 'ddim', which is another sampler",
    ),
    (
        {"spectra": [fastkl.Spectrum([0.0, 0.0])], "metrics": ["w2"], "searches": [{}]},
        "searches[0]: needs an eigenvalue above 0, which the spectrum 'spectra[0]' has not",
    ),
    (
        {"schedules": ["flow"], "families": [{"family": "uniform"}], "steps": [3, 1]},
        "steps[1]: must be more than one step for families[0] on schedules[0], which starts at inf",
    ),
    (
        {
            "schedules": ["flow"],
            "families": [{"family": "uniform"}],
            "steps": None,
            "nfe": [2],
            "samplers": ["heun"],
        },
        "nfe[0]: must be more than one step for families[0] on schedules[0]",
    ),
    (
        {"schedules": [{"kind": "ddpm_linear", "num_train_timesteps": 9}], "steps": None, "nfe": [10]},
        "nfe[0]: must be at most 9, the timesteps of schedules[0] (got 10)",
    ),
    ({"searches": [{"grid": 1}]}, "searches[0].grid: must be greater than or equal to 2 (got 1)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda value: str(value)[:60])
def test_bad_configurations(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    families = [{"family": "tangent", "gamma": 1.0, "sigma_min": 0.0}]
    config = {k: v for k, v in {**small(families=families), **changes}.items() if v is not None}
    if message is None:
        assert fastkl.sweep(config, "out").candidates > 0
        return
    with pytest.raises(ValueError) as caught:
        fastkl.sweep(config, "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fastkl._gpu_device.missing", lambda: "no driver")
    with pytest.raises(ValueError, match=r"^backend: must not be gpu here: .*no driver"):
        fastkl.sweep(small(backend="gpu"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_error_of_a_configuration_is_told():
    with pytest.raises(ValueError, match=r"families\[0\]\.rho: .*; steps\[1\]: .*; tpo: no such key"):
        fastkl.sweep(small(steps=[1, -1], families=[{**KARRAS, "rho": 0}], tpo=3))
    with pytest.raises(ValueError, match="and 4 more"):
        fastkl.sweep(small(**{f"key{i}": 0 for i in range(9)}))


def test_a_grid_without_end_is_refused():
    huge = {"start": 1.0, "stop": 2.0, "num": 10**12}
    with pytest.raises(ValueError, match=r"candidates; one sweep can have 2\*\*62"):
        fastkl.sweep(small(families=[{**KARRAS, "rho": huge, "sigma_min": huge | {"stop": 1.5}}]))


@pytest.mark.parametrize("steps", [(4, 6), range(4, 8, 2), np.array([4, 6])])
def test_lists_may_be_written_in_other_ways(steps):
    assert fastkl.sweep(small(steps=steps)).config_hash == fastkl.sweep(small()).config_hash
    single = fastkl.sweep(small(steps=4, spectra="mnist", metrics="kl", samplers="ddim", per="spectrum"))
    assert single.candidates == 600


def test_numbers_of_numpy_and_single_objects():
    plain = small(
        steps=4, top=2, spectra=[fastkl.Spectrum.preset("digits")], schedules=[fastkl.NoiseSchedule.edm()]
    )
    other = small(
        steps=np.int64(4), top=np.int64(2), chunk=np.int32(100), rtol=np.float64(1e-8), distinct=np.bool_(True),
        spectra=fastkl.Spectrum.preset("digits"), schedules=fastkl.NoiseSchedule.edm(),
        samplers=fastkl.samplers.get("ddim"),
    )  # fmt: skip
    plain["samplers"] = [fastkl.samplers.get("ddim")]
    assert fastkl.sweep(other).top.equals(fastkl.sweep(plain).top)
    assert fastkl.sweep(other).config_hash == fastkl.sweep(plain).config_hash
    assert fastkl.sweep(small(steps=[np.int64(4), 6])).config_hash == fastkl.sweep(small()).config_hash


def test_one_step_from_inf_is_for_w2():
    found = fastkl.sweep(small(schedules=["flow"], families=[{"family": "uniform"}], steps=1, metrics="w2"))
    assert found.left_out == 0
    assert np.isfinite(found.top["value"].to_numpy()).all()


def test_evaluations_are_compared_as_steps_with_timesteps():
    """12 evaluations of Heun's are 6 steps, which 9 timesteps allow."""
    nine = {"kind": "ddpm_linear", "num_train_timesteps": 9}
    config = small(
        schedules=[nine], steps=None, nfe=[12], samplers=["heun"], families=[{"family": "uniform"}]
    )
    assert set(fastkl.sweep(config).top["steps"].to_pylist()) == {6}


def test_patterns_in_a_folder_with_brackets_and_names_with_brackets(tmp_path, monkeypatch):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    for name in ("s1.npy", "s2.npy", "t[1].npy", "t1.npy"):
        np.save(folder / name, np.array([1.0, 0.1]))
    text = 'schedules = ["edm"]\nsteps = 3\n[[families]]\nfamily = "karras"\n'
    for given, names in (("s*.npy", ["s1", "s2"]), ("t[1].npy", ["t[1]"]), ("s[2].npy", ["s2"])):
        (folder / "x.toml").write_text(f'spectra = [{{ file = "{given}" }}]\n{text}')
        assert fastkl.sweep(folder / "x.toml").top["spectrum"].to_pylist() == names


@pytest.mark.parametrize("config", [3, None, [("steps", 3)]])
def test_what_is_no_configuration(config):
    with pytest.raises(TypeError, match="config: must be a dict or the path of a TOML file"):
        fastkl.sweep(config)


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(FileNotFoundError):
        fastkl.sweep(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = [")
    with pytest.raises(ValueError, match=r"bad\.toml: not TOML"):
        fastkl.sweep(tmp_path / "bad.toml")


def test_full_results_need_a_folder():
    with pytest.raises(ValueError, match="full: must be false where there is no output folder"):
        fastkl.sweep(small(full=True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"client": "tcp://nowhere:1"}, TypeError, "client: must be a synchronous dask.distributed.Client"),
        ({"progress": 1}, TypeError, "progress: must be True, False or a callable"),
        ({"num_threads": 0}, ValueError, "num_threads = 0: must be at least 1"),
    ],
)
def test_bad_arguments(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        fastkl.sweep(small(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_bad_configurations_are_refused_before_kernels_are_loaded(tmp_path):
    code = f"""
import sys, fastkl
try:
    fastkl.sweep({{"spectra": ["mnist"], "schedules": ["edm"], "steps": 3, "families": [{{"family": "x"}}]}}, "out")
except ValueError:
    pass
assert "numba" not in sys.modules and "pydantic" in sys.modules
assert {GAMMAS!r}
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_extra_the_remedy_is_named(tmp_path):
    code = """
import sys
sys.modules["pydantic"] = None
import fastkl
try:
    fastkl.sweep({})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert done.stdout == "fastkl.sweep needs pydantic: pip install 'fastkl[sweep]'\n"
