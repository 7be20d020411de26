"""The loader that gives the launcher its jobs."""

from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from laptime.config import job_composer
from laptime.config.compose import hydra_session
from laptime.sweeps.hydra_jobs import _JobLoader, sweep_config
from laptime.sweeps.plan import plan_runs

OVERRIDES = ["seed=1,2,3", "model=mlp,cnn", "optimizer.lr=0.1,1e-3", "hydra.job.chdir=true"]


def test_jobs_are_those_of_hydra_and_are_composed_once_per_shape(monkeypatch):
    composed = []
    compose = job_composer.compose
    monkeypatch.setattr(job_composer, "compose", lambda *args: composed.append(args) or compose(*args))
    with hydra_session() as hydra:
        runs = plan_runs(hydra, OVERRIDES)
        settings = sweep_config(hydra, OVERRIDES, runs[0].composed(), Path("/sweep"))
        composed.clear()
        loader = _JobLoader(hydra, "config")
        for run in runs:
            job = loader.load_sweep_config(settings, run.overrides)
            expected = hydra.config_loader.load_sweep_config(settings, run.overrides)
            assert OmegaConf.to_yaml(job) == OmegaConf.to_yaml(expected)
            for flag in ("readonly", "struct"):
                assert (job._get_flag(flag), job.hydra._get_flag(flag)) == (
                    expected._get_flag(flag), expected.hydra._get_flag(flag)
                )  # fmt: skip
    assert len(runs) == 12 and len(composed) == 2


def test_a_job_that_cannot_be_composed_any_more_raises_the_error_of_hydra():
    with hydra_session() as hydra:
        runs = plan_runs(hydra, ["seed=1,2"])
        settings = sweep_config(hydra, ["seed=1,2"], runs[0].composed(), Path("/sweep"))
        with pytest.raises(ConfigCompositionException):
            _JobLoader(hydra, "config").load_sweep_config(settings, ["seed=wrong"])
