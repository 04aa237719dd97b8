"""The experiments on trained networks: their parts against slow, obvious forms."""

import itertools
import json

import numpy as np
import pytest
import torch

import fastkl

pytestmark = pytest.mark.usefixtures("experiments")
LAMBDAS = torch.tensor([4.0, 0.5, 0.01, 0.0], dtype=torch.float64)


def gaussian(y, sigma):
    """Exact denoiser of four pixels with variances LAMBDAS."""
    return y * (LAMBDAS / (LAMBDAS + sigma**2)).reshape(1, 1, 2, 2)


def units():
    """One first state of standard deviation 1 in every pixel."""
    return torch.ones(1, 1, 2, 2, dtype=torch.float64)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_plain_loop_gives_the_variance_of_the_closed_form(sampler):
    import sampling

    sigmas = fastkl.discretize.karras(fastkl.NoiseSchedule.edm(), 6)
    found = getattr(sampling, sampler)(gaussian, sigmas, units()).flatten().square().numpy()
    expected = fastkl.output_variance(LAMBDAS.numpy(), sigmas, sampler=sampler, prior="ve")
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-300)


def epsilon_of(schedule):
    def epsilon(x, timestep):
        sigma = float(schedule.sigmas(timestep))
        y = x * (1 + sigma**2) ** 0.5
        return (y - gaussian(y, sigma)) / sigma

    return epsilon


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_diffusers_loop_gives_the_variance_of_the_closed_form(sampler):
    import sampling

    setup = sampling.SETUPS[f"mnist-epsilon-{sampler}"]
    sigmas = fastkl.discretize.snap(setup.schedule, fastkl.discretize.tangent(setup.schedule, 7))
    timesteps = setup.schedule.timesteps(sigmas[:-1]).astype(int).tolist()
    run = sampling.with_scheduler(
        sampling.scheduler_for(setup.schedule, setup.sampler), epsilon_of(setup.schedule), timesteps, units()
    )
    expected = fastkl.output_variance(LAMBDAS.numpy(), sigmas, sampler=sampler, prior="vp")
    np.testing.assert_allclose(
        run.flatten().double().square().numpy(), expected, rtol=1e-4, atol=1e-12
    )  # float32 tables


def test_a_scheduler_can_be_used_again():
    import sampling

    setup = sampling.SETUPS["mnist-epsilon-dpmpp_2m"]
    scheduler, epsilon = sampling.scheduler_for(setup.schedule, setup.sampler), epsilon_of(setup.schedule)
    first, _, again = (
        sampling.with_scheduler(scheduler, epsilon, timesteps, units())
        for timesteps in ([999, 500, 100], [999, 700, 200, 50], [999, 500, 100])
    )
    assert torch.equal(first, again)


def test_the_scheduler_of_order_1_is_ddim():
    import sampling
    from diffusers import DDIMScheduler

    setup = sampling.SETUPS["mnist-epsilon-ddim"]
    ddim = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    ddim.set_timesteps(10)
    epsilon = epsilon_of(setup.schedule)
    x = units()
    for timestep in ddim.timesteps:
        x = ddim.step(epsilon(x, int(timestep)), timestep, x).prev_sample
    ours = sampling.with_scheduler(
        sampling.scheduler_for(setup.schedule, setup.sampler), epsilon, ddim.timesteps.tolist(), units()
    )
    # float32 tables: up to 3e-7 for 3 to 50 steps; DDIM that does not end at alpha = 1 is 6e-3 away
    np.testing.assert_allclose(
        ours.flatten().numpy(), x.flatten().numpy(), rtol=0, atol=1e-6 * float(x.abs().max())
    )


def test_weights_survive_saving(monkeypatch, tmp_path):
    import networks

    monkeypatch.setattr(networks, "WEIGHTS", tmp_path)
    description = networks.Description("x", "mnist", "edm", (8, 8, 8), 28, 0.6, 0.002, 80.0, 3, 10, 0.1, 1.0)
    torch.manual_seed(3)
    model = networks.Denoiser(description)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    networks.save(model, description)
    again = networks.load("x")
    assert again.description == description
    y = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(again(y, torch.ones(2)), model(y, torch.ones(2)), rtol=2e-2, atol=2e-2)


def test_frechet_distance_of_known_normals():
    import scores

    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    first = scores.Normal(np.zeros(3), rotation @ np.diag([4.0, 1.0, 0.0]) @ rotation.T)
    other = scores.Normal(np.full(3, 2.0), rotation @ np.diag([1.0, 9.0, 0.25]) @ rotation.T)
    expected = 12.0 + 1.0 + 4.0 + 0.25
    assert scores.frechet(first, other) == pytest.approx(expected, rel=1e-6)
    assert scores.frechet(first, first) == pytest.approx(0.0, abs=1e-6)


def test_precision_and_recall_count_points_in_balls():
    import scores

    generator = np.random.default_rng(2)
    points, centres = generator.normal(size=(60, 3)), 0.7 * generator.normal(size=(80, 3))
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    radius = np.sort(gaps, axis=1)[:, scores.NEIGHBOURS]
    np.testing.assert_allclose(scores.radii(centres), radius**2, rtol=1e-9)
    within = np.linalg.norm(points[:, None] - centres[None], axis=2) <= radius
    assert 0 < within.any(1).mean() < 1
    found = scores.covered(points, centres, radius**2)
    assert found == (pytest.approx(within.any(1).mean()), pytest.approx(within.any(0).mean()))


def test_pixels_are_averaged_down_to_the_largest_side():
    import scores

    images = np.arange(2 * 64 * 64, dtype=np.float32).reshape(2, 1, 64, 64)
    found = scores.small(images)
    assert found.shape == (2, 32 * 32)
    assert found[1, 0] == images[1, 0, :2, :2].mean()


def test_dynamic_programming_finds_the_path_of_least_discounted_cost():
    import searched

    costs = np.full((7, 7), np.inf)
    upper = np.triu_indices(7, 1)
    costs[upper] = np.random.default_rng(4).uniform(1, 2, len(upper[0]))

    def total(path):
        jumps = itertools.pairwise(path)
        return sum(costs[i, j] * searched.LATER**k for k, (i, j) in enumerate(jumps))

    for steps in (1, 2, 3, 5):
        paths = [[0, *middle, 6] for middle in itertools.combinations(range(1, 6), steps - 1)]
        assert total(searched.shortest(costs, steps)) == pytest.approx(min(map(total, paths)))


def test_the_teachers_path_costs_nothing():
    import searched

    grid = np.append(np.geomspace(10.0, 0.1, 6), 0.0)
    states, slopes = searched.teacher(gaussian, grid, units())
    for deviation in (True, False):
        costs = searched.jump_costs(states, slopes, grid, deviation)
        assert np.abs(np.diag(costs, 1)).max() < 1e-12
        assert costs[0, -1] > 0.1


def test_trajectory_levels_fall_from_the_first_level_and_beat_uniform_ones():
    import searched

    def single(y, sigma):
        return gaussian(y, sigma).to(y.dtype)

    schedule = fastkl.NoiseSchedule.edm()
    found = searched.trajectory_dp(single, schedule, (1, 2, 2), [2, 5])
    for (_, steps), choice in found.items():
        assert len(choice.sigmas) == steps + 1
        assert (choice.sigmas[0], choice.sigmas[-1]) == (pytest.approx(80.0), 0.0)
        assert np.all(np.diff(choice.sigmas) < 0)
    worse = fastkl.divergence(LAMBDAS.numpy(), fastkl.discretize.uniform(schedule, 5), "w2", prior="ve")
    for name in ("trajectory-dp", "trajectory-dp-l2"):
        assert fastkl.divergence(LAMBDAS.numpy(), found[name, 5].sigmas, "w2", prior="ve") < worse


def test_cma_finds_levels_that_are_better_on_its_objective():
    import searched

    start = np.array([80.0, 10.0, 1.0, 0.0])
    found = searched.cma_fd(lambda s: float(np.square(np.log(s[1:-1] / [5.0, 0.2])).sum()), start)
    np.testing.assert_allclose(found.sigmas, [80.0, 5.0, 0.2, 0.0], rtol=0.05)
    assert found.evaluations % (searched.DRAWN * 3) == 0
    free = searched.cma_fd(
        lambda s: float(np.square(np.log(s[:-1] / [99.0, 5.0, 0.2])).sum()), start, most=90.0
    )
    np.testing.assert_allclose(free.sigmas, [90.0, 5.0, 0.2, 0.0], rtol=0.05)


def test_every_law_gives_levels_that_the_model_takes():
    import strategies

    spectrum = fastkl.Spectrum([1.0, 0.1, 0.01], counts=[5, 20, 39], mean=np.zeros(3))
    effective = fastkl.Spectrum([1.0, 0.02, 0.0], counts=[5, 10, 49], mean=np.zeros(3))
    for schedule in (fastkl.NoiseSchedule.edm(0.002, 80.0), fastkl.NoiseSchedule.ddpm_linear()):
        s = strategies.Situation(schedule, "ddim", spectrum, effective, 0.6, useful_max=20.0)
        table = None if schedule.num_train_timesteps is None else schedule.sigmas(np.arange(1000))
        for name, choose in strategies.all_of(s).items():
            found = strategies.levels(s, choose, 5)
            assert found.shape == (6,), name
            assert np.all(np.diff(found) < 0), name
            assert found[-1] == 0, name
            if name.endswith("useful"):
                assert found[0] <= 20.0
            elif "-from" in name:
                assert found[0] == pytest.approx(
                    float(name.split("-from")[1]), rel=0.01
                )  # moved to the table
            elif name != "uniform-leading" and not name.endswith(("free", "-start")):
                assert found[0] == pytest.approx(schedule.sigma_max), name
            if table is not None:
                assert np.isin(found[:-1], table).all(), name


def test_choosing_the_first_level_too_is_better_by_the_model():
    import strategies

    spectrum = fastkl.Spectrum([1.0, 0.1, 0.01], counts=[5, 20, 39], mean=[0.5, 0.2, 0.0])
    for schedule in (fastkl.NoiseSchedule.edm(0.002, 80.0), fastkl.NoiseSchedule.ddpm_linear()):
        s = strategies.Situation(schedule, "ddim", spectrum, spectrum, 0.6, useful_max=1.0)
        choices = strategies.all_of(s)
        levels = {
            name: strategies.levels(s, choices[name], 4)
            for name in (
                "search-w2-cov-0",
                "search-w2-cov-free",
                "search-w2-cov-free-useful",
                "tangent-w2-cov",
                "tangent-w2-cov-free",
            )
        }
        w2 = {
            name: fastkl.divergence(spectrum, found, "w2", prior=schedule.prior)
            for name, found in levels.items()
        }
        assert w2["search-w2-cov-free"] < 0.9 * w2["search-w2-cov-0"]
        assert w2["tangent-w2-cov-free"] < 0.9 * w2["tangent-w2-cov"]
        assert levels["search-w2-cov-free-useful"][0] <= 1.0 < levels["search-w2-cov-free"][0]
        assert w2["search-w2-cov-free"] < w2["search-w2-cov-free-useful"]


def test_levels_for_a_solver_with_a_memory_are_those_of_ddim_and_the_least_one():
    import strategies

    spectrum = fastkl.Spectrum([1.0, 0.1, 0.01], counts=[5, 20, 39], mean=[0.5, 0.2, 0.0])
    schedule = fastkl.NoiseSchedule.ddpm_linear()
    of = {
        sampler: strategies.Situation(schedule, sampler, spectrum, spectrum, 0.6, useful_max=20.0)
        for sampler in ("ddim", "dpmpp_2m")
    }
    choices = {sampler: strategies.all_of(s) for sampler, s in of.items()}
    low = strategies.levels(of["dpmpp_2m"], choices["dpmpp_2m"]["search-w2-cov-free-ddim-low"], 5)
    fewer = strategies.levels(of["ddim"], choices["ddim"]["search-w2-cov-free"], 4)
    np.testing.assert_array_equal(low, [*fewer[:-1], schedule.sigma_min, 0.0])
    assert not any("-ddim" in name for name in choices["ddim"])


def test_the_search_for_a_first_level_is_run_once(monkeypatch):
    import strategies

    spectrum = fastkl.Spectrum([1.0, 0.1, 0.01], counts=[5, 20, 39], mean=np.zeros(3))
    s = strategies.Situation(fastkl.NoiseSchedule.edm(0.002, 80.0), "ddim", spectrum, spectrum, 0.6, 20.0)
    choices, search, calls = strategies.all_of(s), fastkl.search, []
    monkeypatch.setattr(fastkl, "search", lambda *args, **kwargs: calls.append(1) or search(*args, **kwargs))
    names = ("karras-7-start", "tan-1-to0-start", "search-w2-eff-free")
    first = {strategies.levels(s, choices[name], 4)[0] for name in names}
    assert (len(first), len(calls)) == (1, 1)
    strategies.levels(s, choices["karras-7-start"], 5)
    assert len(calls) == 2


def test_the_store_adds_what_is_missing_and_keeps_the_rest(tmp_path):
    import store

    path = tmp_path / "rows.json"
    for nfe in (10, 3):
        rows = store.Store(path, ("name", "nfe"), {"setup": "s"}, ("torch",))
        rows.add({"name": "a", "nfe": nfe})
    again = store.Store(path, ("name", "nfe"), {"setup": "s"}, ("torch",))
    wanted = [{"name": "a", "nfe": 3}, {"name": "b", "nfe": 3}]
    assert again.missing(wanted) == wanted[1:]
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [row["nfe"] for row in found["rows"]] == [3, 10]
    assert found["setup"] == "s"
    assert {"cpu", "commit", "date"} <= set(found["runs"][0])
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]
    for about in ({"setup": "other"}, {"setup": "s", "images": "some"}, {}):
        with pytest.raises(SystemExit, match=r"rows\.json was made from something else"):
            store.Store(path, ("name", "nfe"), about, ("torch",))


def test_the_committed_results_are_those_of_their_setups():
    import sampling
    import store

    for setup in sampling.SETUPS.values():
        for kind, more in (
            ("samples", {"model": setup.model_name, "sampler": setup.sampler}),
            ("found", {}),
        ):
            path = store.RESULTS / f"{kind}-{setup.name}.json"
            opened = store.Store(path, ("strategy", "nfe"), {"setup": setup.name} | more, ())
            assert not path.exists() or opened.rows


def test_the_effective_spectrum_leaves_out_where_the_network_is_of_no_use():
    import measured

    lambdas = np.repeat([2.0, 0.1], [4, 12])
    sigmas = np.geomspace(0.01, 50, 30)
    exact = np.array([(lambdas * s**2 / (lambdas + s**2)).sum() for s in sigmas])
    found = {
        "sigmas": sigmas,
        "errors": exact.copy(),
        "eigenvalues": lambdas,
        "mean": None,
        "variance": lambdas.sum(),
    }
    found["errors"][-3:] = 100.0  # far from the data: worse than to answer the mean
    found["errors"][10] *= 1.5  # one level badly learned
    levels = np.geomspace(0.05, 5, 9)
    fitted = measured.effective_spectrum(found)
    errors = [(fitted.eigenvalues * s**2 / (fitted.eigenvalues + s**2) * fitted.counts).sum() for s in levels]
    np.testing.assert_allclose(errors, [(lambdas * s**2 / (lambdas + s**2)).sum() for s in levels], rtol=0.05)
    assert measured.effective_spectrum(found | {"errors": sigmas**2 * 99}) is None


def test_the_network_of_a_pipeline_answers_with_the_noise():
    import pipelines

    schedule = fastkl.NoiseSchedule.ddpm_linear()

    class Answer:
        def __init__(self, prediction):
            self.prediction = prediction

        def __call__(self, x, timesteps):
            sigma = torch.from_numpy(schedule.sigmas(timesteps.long().numpy())).reshape(-1, 1, 1, 1)
            kept = 1 / (1 + sigma**2).sqrt()
            image = gaussian(x / kept, sigma)
            noise = (x - kept * image) / (kept * sigma)
            self.sample = noise if self.prediction == "epsilon" else kept * noise - kept * sigma * image
            return self

    sigma = torch.tensor([float(schedule.sigmas(500))])
    for prediction in ("epsilon", "v_prediction"):
        model = pipelines.PipelineDenoiser.__new__(pipelines.PipelineDenoiser)
        torch.nn.Module.__init__(model)
        model.network, model.schedule, model.prediction = Answer(prediction), schedule, prediction
        found = model(units(), sigma.double())
        torch.testing.assert_close(found, gaussian(units(), float(sigma)), rtol=1e-6, atol=1e-8)
