"""The comparison on a user's own diffusers pipeline: a tiny one from end to end, and what is refused."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import fastkl

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "experiments"
pytestmark = pytest.mark.usefixtures("experiments")


def learn(unet, scheduler, images, steps):
    """Teach a network to predict the noise, a little."""
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-2)
    for _ in range(steps):
        clean = images[torch.randint(len(images), (32,))]
        noise, timesteps = torch.randn_like(clean), torch.randint(1000, (32,))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        loss = (unet(noisy, timesteps).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(folder, channels, steps):
    """A diffusers pipeline with a tiny network, and images for it: rings of one colour on another."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from PIL import Image

    torch.manual_seed(5)
    torch.set_num_threads(1)
    unet = UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(8, 8),
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(6)
    ring = np.pad(np.ones((4, 4)), 2)[:, :, None]
    pixels = np.stack([ring * a + (1 - ring) * b for a, b in generator.uniform(30, 220, (300, 2, channels))])
    pixels = (pixels + generator.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image[:, :, 0] if channels == 1 else image).save(folder / "images" / f"{i}.png")
    learn(unet, DDPMScheduler(), torch.from_numpy(pixels).permute(0, 3, 1, 2).float() * (2 / 255) - 1, steps)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "model")
    (folder / "images" / "notes.txt").write_text("not an image")


@pytest.fixture
def pipeline(tmp_path):
    """A grey pipeline that has learned something."""
    save(tmp_path, channels=1, steps=200)
    return tmp_path


class InThread(ThreadPoolExecutor):
    """In place of compare.py's processes."""

    def __init__(self, workers, context, start, initial):
        super().__init__(workers, initializer=start, initargs=initial)


@pytest.fixture
def compare(monkeypatch, experiments):
    """compare.py as a function of a folder and arguments, in this process; returns what it wrote."""
    import compare

    def run(folder, *arguments, sampler="ddim", out="out"):
        command = ["compare.py", "own", "--pipeline", "model", "--images", "images", "--sampler", sampler]
        monkeypatch.setattr(sys, "argv", [*command, "--out", out, "--seeds", "0", *arguments])
        monkeypatch.setattr(compare, "ProcessPoolExecutor", InThread)
        monkeypatch.chdir(folder)
        compare.main()
        found = (folder / out / f"samples-model-{sampler}.json").read_text(encoding="utf-8")
        assert str(folder) not in found
        return json.loads(found)

    return run


def test_the_comparison_runs_on_a_users_pipeline_and_goes_on_where_it_stopped(pipeline):
    command = [sys.executable, str(HERE / "compare.py"), "own", "--pipeline", "model", "--images", "images"]
    command += ["--out", "out", "--count", "250", "--seeds", "0", "--nfe", "3", "--processes", "1"]
    for strategies in (["karras-7", "search-w2-cov-0"], ["karras-7", "search-w2-cov-0", "tangent-w2-eff"]):
        done = subprocess.run(
            [*command, "--strategies", *strategies], cwd=pipeline, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "karras-7" not in done.stdout  # was there
    found = json.loads((pipeline / "out" / "samples-model-ddim.json").read_text(encoding="utf-8"))
    rows = {row["strategy"]: row for row in found["rows"]}
    assert set(rows) == {"karras-7", "search-w2-cov-0", "tangent-w2-eff"}
    for row in rows.values():
        assert row["fd_pixels"] > 0
        assert row["fd_features"] == pytest.approx(row["fd_pixels"])  # no labels: pixels are the features
        assert 0 <= row["precision"] <= 1
        assert row["to_teacher"] > 0
    spectrum = json.loads((pipeline / "out" / "measured-model-images.json").read_text(encoding="utf-8"))
    assert len(spectrum["eigenvalues"]) == 64
    schedule = fastkl.NoiseSchedule.ddpm_linear()
    covariance = fastkl.Spectrum(np.array(spectrum["eigenvalues"]), mean=spectrum["mean"])
    best = fastkl.search(covariance, schedule, 3, metric="w2")
    value = fastkl.divergence(covariance, rows["search-w2-cov-0"]["sigmas"], "w2")
    assert value == pytest.approx(best.value, rel=1e-6)  # diffusers has float32 tables


def drawn(folder, sigmas, count, order):
    """Samples of seed 0 by diffusers' own scheduler and network."""
    from diffusers import DPMSolverMultistepScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(folder / "model" / "unet")
    scheduler = DPMSolverMultistepScheduler(solver_order=order, final_sigmas_type="zero")
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy()
    scheduler.set_timesteps(timesteps=[int(np.abs(levels - sigma).argmin()) for sigma in sigmas[:-1]])
    shape = count, unet.config.in_channels, 8, 8
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            x = scheduler.step(unet(x, timestep).sample, timestep, x).prev_sample
    return x.numpy()


def distance(folder, samples):
    """Frechet distance of the pixels of samples to the images that are not held out."""
    from PIL import Image

    paths = [path for i, path in enumerate(sorted((folder / "images").glob("*.png"))) if i % 10 != 9]
    images = np.stack([np.asarray(Image.open(path)).reshape(8, 8, -1).transpose(2, 0, 1) for path in paths])
    sets = [s.reshape(len(s), -1).astype(float) for s in (images * (2 / 255) - 1, samples.clip(-1, 1))]
    first, other = (np.cov(rows, rowvar=False) for rows in sets)
    cross = np.sqrt(np.maximum(np.linalg.eigvals(first @ other).real, 0)).sum()
    shift = np.square(sets[0].mean(0) - sets[1].mean(0)).sum()
    return shift + np.trace(first) + np.trace(other) - 2 * cross


@pytest.mark.parametrize(
    ("channels", "steps", "sampler", "strategy"),
    [(1, 200, "dpmpp_2m", "search-w2-eff-free"), (3, 0, "ddim", "tangent-w2-cov-free")],
)
def test_samples_and_teacher_are_those_of_diffusers(compare, tmp_path, channels, steps, sampler, strategy):
    save(tmp_path, channels, steps)
    arguments = ("--count", "24", "--nfe", "4", "4", "--processes", "1", "--strategies", strategy)
    found = compare(tmp_path, *arguments, sampler=sampler)
    (row,) = found["rows"]
    assert (row["strategy"], row["nfe"], row["count"], len(row["sigmas"])) == (strategy, 4, 24, 5)
    schedule = fastkl.NoiseSchedule.ddpm_linear()
    assert row["sigmas"][0] < 0.9 * schedule.sigma_max  # it was chosen
    order = {"ddim": 1, "dpmpp_2m": 2}[sampler]
    samples = drawn(tmp_path, row["sigmas"], 24, order)
    assert row["fd_pixels"] == pytest.approx(distance(tmp_path, samples), rel=1e-3)
    measured = json.loads((tmp_path / "out" / "measured-model-images.json").read_text(encoding="utf-8"))
    assert len(measured["eigenvalues"]) == 64 * channels
    sigmas, errors = np.array(measured["sigmas"]), np.array(measured["errors"])
    useful = sigmas[(errors < measured["variance"]) & (errors < sigmas**2 * 64 * channels)]
    first = useful.max() if len(useful) else schedule.sigma_max
    assert found["teacher_from"] == pytest.approx(first, rel=1e-6)  # diffusers has float32 tables
    assert (first < 0.9 * schedule.sigma_max) == (steps > 0)  # without learning no level is of use
    levels = fastkl.discretize.tangent(schedule, 64, sigma_min=0.0, sigma_max=first)
    teacher = drawn(tmp_path, fastkl.discretize.snap(schedule, levels), 24, order)
    assert row["to_teacher"] == pytest.approx(np.square(samples - teacher).sum((1, 2, 3)).mean(), rel=1e-3)


def test_rows_of_two_models_or_image_folders_are_not_mixed(compare, tmp_path):
    from PIL import Image

    first, moved = tmp_path / "first", tmp_path / "moved"
    save(first, channels=1, steps=0)
    arguments = ("--count", "4", "--nfe", "1", "--processes", "1", "--strategies", "karras-7")
    rows = compare(first, *arguments)["rows"]
    first.rename(moved)
    assert compare(moved, *arguments)["rows"] == rows
    for changed, key in (("images/7.png", "images"), ("model/unet/config.json", "network")):
        other = tmp_path / key
        shutil.copytree(moved, other)
        if key == "images":
            Image.fromarray(np.full((8, 8), 99, np.uint8)).save(other / changed)
        else:
            (other / changed).write_text((other / changed).read_text() + "\n")
        with pytest.raises(SystemExit, match=f"measured-model-images.json was made .* its '{key}' is"):
            compare(other, *arguments)
        (other / "out" / "measured-model-images.json").unlink()
        with pytest.raises(SystemExit, match=f"samples-model-ddim.json was made .* its '{key}' is"):
            compare(other, *arguments)
        assert json.loads((other / "out" / "samples-model-ddim.json").read_text())["rows"] == rows
        assert len(compare(other, *arguments, out="another")["rows"]) == 1


def test_samples_that_are_not_finite_are_kept_as_failed(compare, tmp_path, monkeypatch, capsys):
    import sampling

    def runner(setup, model, device):
        return lambda sigmas, noise: noise / (0.0 if len(sigmas) == 4 else 2.0)

    save(tmp_path, channels=1, steps=0)
    monkeypatch.setattr(sampling, "runner", runner)
    arguments = ("--count", "8", "--nfe", "3", "4", "--processes", "1", "--strategies", "karras-7", "beta")
    found = compare(tmp_path, *arguments)["rows"]
    failed = {"strategy", "nfe", "seed", "count", "sigmas", "failed", "run"}
    for row in found:
        assert (set(row) == failed) == (row["nfe"] == 3)
        assert row["nfe"] != 3 or row["failed"] == "samples are not finite"
    assert len(found) == 4
    assert capsys.readouterr().out.count("samples are not finite") == 2
    assert compare(tmp_path, *arguments)["rows"] == found
    assert "NFE" not in capsys.readouterr().out  # nothing was drawn again


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("count", "3", 4), ("seeds", "-1", 0), ("nfe", "0", 1), ("processes", "0", 1), ("count", "1e4", 4)],
)
def test_numbers_that_make_no_sense_are_refused(monkeypatch, capsys, name, value, least):
    import compare

    monkeypatch.setattr(sys, "argv", ["compare.py", "mnist-edm-ddim", f"--{name}={value}"])
    with pytest.raises(SystemExit):
        compare.parsed()
    said = capsys.readouterr().err
    assert f"--{name}: must be a whole number, {least} or more, got {value}" in said


def test_own_results_do_not_go_to_the_committed_ones(monkeypatch, tmp_path):
    import compare

    command = ["compare.py", "own", "--pipeline", str(tmp_path), "--images", str(tmp_path)]
    for more in ([], ["--out", str(HERE / "results")]):
        monkeypatch.setattr(sys, "argv", command + more)
        with pytest.raises(SystemExit, match="own needs --out"):
            compare.setup_of(compare.parsed())


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("unet", {"num_class_embeds": 10}, "conditional on classes"),
        ("unet", {"in_channels": 4, "out_channels": 4}, "must be 1 or 3"),
        ("scheduler", {"beta_schedule": None}, "no table of betas"),
        ("scheduler", {"rebetas_zero_snr": True, "rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type"),
    ],
)
def test_pipelines_that_cannot_be_compared_are_refused(tmp_path, part, change, said):
    import pipelines
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    path = tmp_path / part / ("config.json" if part == "unet" else "scheduler_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SystemExit, match=said):
        pipelines.load(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    command = [sys.executable, str(HERE / "compare.py"), "own", "--pipeline", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--images" in done.stderr
