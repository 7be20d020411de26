"""Optuna and its sweeper are patched only during a search."""

import logging

import pytest

from laptime.sweeps.optuna_patches import patched

sweepers = pytest.importorskip("hydra_plugins.hydra_optuna_sweeper.optuna_sweeper")
optuna = pytest.importorskip("optuna")

SWEEPER_LOG = "hydra_plugins.hydra_optuna_sweeper"


@pytest.mark.unit
def test_optuna_is_unpatched_after_a_search():
    sampler, sweeper, log = optuna.samplers.GridSampler, sweepers.OptunaSweeper, logging.getLogger(SWEEPER_LOG)

    def state() -> list[object]:
        return [sampler.after_trial, sweeper.sweep, optuna.logging.get_verbosity(), log.level]

    before = state()
    with patched():
        within = state()
    assert state() == before
    assert all(one != other for one, other in zip(before, within, strict=True))
