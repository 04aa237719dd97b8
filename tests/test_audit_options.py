"""The auditor and `optimize` on options of schedulers that are rare or hard."""

import diffusers
import numpy as np
import pytest
import torch

import fastkl
from fastkl.integrations.audit import audit

torch.set_num_threads(1)
LAMBDAS = np.geomspace(100.0, 0.01, 9)
SPECTRUM = fastkl.Spectrum(LAMBDAS)
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("kind", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler])
def test_negative_timesteps_of_edm_are_no_wrong_table_entry(kind):
    report = audit(kind(), 10, SPECTRUM)
    assert report.path.timesteps.min() < -1.0
    assert "wrong_table_entry" not in [finding.code for finding in report.findings]
