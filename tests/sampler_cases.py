"""The samplers of the tests: every registered one with its reference, the published runs, and how to read them."""

import json
from pathlib import Path

import reference_samplers as reference
import reference_solvers as solvers

from fastkl import samplers

TRUTH = json.loads((Path(__file__).parent / "data" / "samplers_truth.json").read_text())
LAMBDAS = TRUTH["meta"]["lambdas"]
RUNS = {run["name"]: run for run in TRUTH["cases"]}

ALGORITHMS = {
    "dpmsolver++": {"kind": "data"},
    "dpmsolver": {"kind": "noise"},
    "sde-dpmsolver++": {"kind": "data", "eta": 1},
    "sde-dpmsolver": {"kind": "noise", "sde": True},
}


def reference_of(sampler):
    """The reference function of a sampler, and its options: what each option means is written here a second time."""
    options = dict(sampler.options)
    if sampler.name in ("multistep", "singlestep"):
        algorithm = ALGORITHMS[options.pop("algorithm")]
        eta = options.pop("eta", 1.0)
        result = {**algorithm, "order": options["order"], "solver": options["solver_type"],
                  "flipped": options["as_shipped"], "lower_order_final": options["lower_order_final"]}  # fmt: skip
        if "eta" in algorithm:
            result["eta"] = eta
        if sampler.name == "multistep":
            result |= {"euler_at_final": options["euler_at_final"], "second": options["second_step"]}
        return getattr(solvers, sampler.name), result
    if sampler.name == "unipc":
        return solvers.unipc, {"order": options["order"], "variant": options["variant"],
                                 "kind": options["prediction"]}  # fmt: skip
    if sampler.name == "flow_heun":
        return reference.heun, {"flow": True}
    return getattr(reference, sampler.name), options


def library_sampler(run):
    """The sampler that a published run used."""
    config, arguments, scheduler = run["config"], run.get("step_kwargs", {}), run["scheduler"]
    if scheduler == "DPMSolverSinglestepScheduler":
        return solver(samplers.singlestep, config, lower_order_final=config.get("lower_order_final", False))
    if scheduler in ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"):
        return solver(
            samplers.multistep, config, lower_order_final=config.get("lower_order_final", True),
            euler_at_final=config.get("euler_at_final", False),
        )  # fmt: skip
    if scheduler == "PNDMScheduler":
        return samplers.plms() if config.get("skip_prk_steps") else samplers.prk(run["middles"])
    if scheduler == "sample_dpmpp_2m_sde":
        form = config.get("solver_type", "midpoint")
        if config["eta"] == 0:
            return samplers.multistep(solver_type=form, lower_order_final=False)
        return samplers.multistep("sde-dpmsolver++", solver_type=form, lower_order_final=False)
    return {
        "DDIMScheduler": lambda: samplers.ddim(arguments.get("eta", 0.0)),
        "DDPMScheduler": lambda: samplers.ddpm(
            noise_at_last="trailing" in run["name"] or "custom" in run["name"]
        ),
        "EulerDiscreteScheduler": lambda: samplers.get("euler"),
        "EDMEulerScheduler": lambda: samplers.get("euler"),
        "sample_euler": lambda: samplers.get("euler"),
        "FlowMatchEulerDiscreteScheduler": lambda: samplers.get(
            "flow_stochastic" if config.get("stochastic_sampling") else "flow_euler"
        ),
        "EulerAncestralDiscreteScheduler": lambda: samplers.get("euler_ancestral"),
        "sample_euler_ancestral": lambda: samplers.get("euler_ancestral"),
        "HeunDiscreteScheduler": samplers.heun,
        "sample_heun": samplers.heun,
        "FlowMatchHeunDiscreteScheduler": samplers.flow_heun,
        "UniPCMultistepScheduler": lambda: samplers.unipc(
            config.get("solver_order", 2), prediction="data" if config.get("predict_x0", True) else "noise"
        ),
        "DEISMultistepScheduler": lambda: samplers.deis(config.get("solver_order", 2)),
        "LMSDiscreteScheduler": lambda: samplers.lms(arguments.get("order", 4)),
        "sample_lms": samplers.lms,
        "sample_dpm_2": samplers.dpm_2,
        "sample_dpmpp_2s_ancestral": samplers.dpmpp_2s,
        "sample_dpmpp_2m": lambda: samplers.multistep(lower_order_final=False),
        "sample_dpmpp_3m_sde": lambda: samplers.get("dpmpp_3m_sde"),
        "sample_dpmpp_sde": lambda: samplers.dpmpp_sde(brownian=config["noise"] == "brownian"),
    }[scheduler]()


def solver(make, config, **options):
    """A DPM-Solver with the options that both kinds have."""
    algorithm, order = config.get("algorithm_type", "dpmsolver++"), config.get("solver_order", 2)
    form = config.get("solver_type", "midpoint")
    wrong = (algorithm, order) == ("sde-dpmsolver++", 3) and (make is samplers.multistep or form == "heun")
    return make(algorithm, order, form, as_shipped=wrong, **options)
