"""The comparison on a user's own diffusers pipeline: a tiny one from end to end, and what is refused."""

import json
import subprocess
import sys
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


@pytest.fixture
def pipeline(tmp_path):
    """A diffusers pipeline with a tiny network, and images for it: rings of one colour on another."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from PIL import Image

    torch.manual_seed(5)
    torch.set_num_threads(1)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(6)
    ring = np.pad(np.ones((4, 4)), 2)
    grey = np.stack([ring * a + (1 - ring) * b for a, b in generator.uniform(30, 220, (60, 2))])
    grey = (grey + generator.normal(0, 8, grey.shape)).clip(0, 255).astype(np.uint8)
    for i, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    learn(unet, DDPMScheduler(), torch.from_numpy(grey[:, None]).float() * (2 / 255) - 1, 200)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "model")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path


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
