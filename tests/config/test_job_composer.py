"""Jobs of a sweep that differ in numbers are composed once, with the results of composing each."""

import itertools

import pytest
from hydra._internal.hydra import Hydra
from omegaconf import DictConfig, OmegaConf

from laptime.config import job_composer
from laptime.config.compose import compose, hydra_session, without_hydra
from laptime.config.job_composer import JobComposer
from laptime.config.overrides import parse
from laptime.errors import UserError
from laptime.runner.check import check, check_classes, check_settings_of_jobs
from laptime.sweeps.plan import plan_runs
from laptime.training import open_groups

pytestmark = pytest.mark.unit


@pytest.fixture
def num_composed(monkeypatch):
    """The number of times that Hydra composes, in a list."""
    composed = [0]

    def counted(self, *args, **kwargs):
        composed[0] += 1
        return original(self, *args, **kwargs)

    original = Hydra.compose_config
    monkeypatch.setattr(Hydra, "compose_config", counted)
    return composed


def jobs_of(*dimensions: str) -> list[list[str]]:
    """Every combination: `a=1,2` and `b=3` are two jobs."""
    values = [
        [f"{parse(one).prefix}{parse(one).full_key}={value}" for value in one.partition("=")[2].split("|")]
        if "=" in one
        else [one]
        for one in dimensions
    ]
    return [list(job) for job in itertools.product(*values)]


VARIED = [
    (["seed=0|1|2"], 1),
    (["model=mlp|cnn", "optimizer=sgd|adam", "optimizer.lr=0.1|1e-3", "seed=1|2"], 4),
    (["optimizer.lr=1|0.5|2", "training.compile=true|false"], 2),  # a whole number and a fraction
    (["training.batch_size=8|16", "dataset.limit=null|100", "seed=1|2"], 2),
    (["experiment=quick|mnist_99", "training.epochs=2|3"], 2),
    (["dataset.limit=${training.batch_size}|5|6", "training.batch_size=8|9"], 2),
    (["dataset.root='${oc.env:HOME}'|/data", "seed=1|2"], 2),
    (["+model.width=1|2", "seed=1|2"], 2),
    (["~callbacks.checkpoint", "++training.epochs=2|3", "seed=1|2"], 2),
    (["hydra.job.config.override_dirname.exclude_keys=[seed]", "seed=1|2", "training.epochs=1|2"], 1),
    (["callbacks.checkpoint.save_best=true|false", "callbacks.checkpoint={save_best: true}"], 2),
    (["callbacks.checkpoint={save_best: true}", "callbacks.checkpoint.save_best=true|false"], 2),
]


@pytest.mark.parametrize(("dimensions", "num_shapes"), VARIED, ids=lambda value: str(value))
def test_jobs_have_the_configurations_that_hydra_composes(dimensions, num_shapes, num_composed):
    jobs = jobs_of(*dimensions)
    with hydra_session() as hydra:
        composer = JobComposer(hydra)
        composed = [composer.compose(job) for job in jobs]
        assert num_composed == [num_shapes]
        for job, result in zip(jobs, composed, strict=True):
            expected = compose(hydra, job)
            assert OmegaConf.to_yaml(result.composed()) == OmegaConf.to_yaml(expected)
            assert result.overrides == list(expected.hydra.overrides.task)
            assert OmegaConf.to_yaml(result.views()[1]) == OmegaConf.to_yaml(without_hydra(expected))


def test_the_number_of_loaded_files_does_not_depend_on_the_number_of_jobs(monkeypatch):
    loaded = []
    original = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda file: loaded.append(1) or original(file))

    def num_loaded(num_jobs):
        loaded.clear()
        with hydra_session() as hydra:
            assert len(plan_runs(hydra, [f"seed=range(0,{num_jobs})", "model=mlp,cnn"])) == 2 * num_jobs
        return len(loaded)

    assert num_loaded(1) == num_loaded(50)


@pytest.mark.parametrize("wrong", ["training.epochs=2.5", "training.epochs=x", "training.epoch=3"])
def test_a_wrong_value_of_a_later_job_has_the_message_of_a_single_run(wrong):
    with hydra_session() as hydra:
        composer = JobComposer(hydra)
        for epochs in (1, 2):
            composer.compose([f"training.epochs={epochs}"])
        messages = []
        for composing in (composer.compose, lambda job: compose(hydra, job)):
            with pytest.raises(UserError) as refused:
                composing([wrong])
            messages.append(str(refused.value))
        assert messages[0] == messages[1] and wrong in messages[0]
        assert composer.compose(["training.epochs=3"]).composed().training.epochs == 3


def test_a_value_out_of_range_in_a_later_job_is_refused():
    with hydra_session() as hydra, pytest.raises(UserError, match=r"^training.epochs=0: must be at least 1"):
        check_settings_of_jobs(plan_runs(hydra, ["training.epochs=1,2,0"]), [])


def test_jobs_of_one_template_have_their_own_checked_configurations():
    overrides = ["seed=1,2", "optimizer.lr=0.1,0.2"]
    with hydra_session() as hydra:
        jobs = plan_runs(hydra, overrides)
        configs = check_settings_of_jobs(jobs, overrides)
        assert configs == [check(compose(hydra, job.overrides), overrides) for job in jobs]
    assert [(config.seed, config.optimizer["lr"]) for config in configs] == [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]


def test_a_cached_resolver_gets_the_numbers_of_each_job():
    OmegaConf.register_new_resolver("tenfold", lambda number: 10 * number, use_cache=True, replace=True)
    with hydra_session() as hydra:
        jobs = plan_runs(hydra, ["seed=1,2", "dataset.limit='${tenfold:${seed}}'"])
        assert [config.dataset["limit"] for config in check_settings_of_jobs(jobs, [])] == [10, 20]


def test_equal_open_groups_are_checked_once(monkeypatch):
    checked = []
    original = open_groups.check_open_groups
    monkeypatch.setattr(open_groups, "check_open_groups", lambda config: checked.append(config) or original(config))
    with hydra_session() as hydra:
        jobs = plan_runs(hydra, ["seed=range(0,5)", "model=mlp,cnn", "optimizer.lr=0.1,0.2"])
        check_classes(check_settings_of_jobs(jobs, []), [])
    assert len(checked) == 4


def test_a_configuration_that_cannot_be_pickled_is_copied():
    class Local:
        pass

    cfg = OmegaConf.create({"seed": 1}, flags={"allow_objects": True})
    cfg.local = Local()
    copy = job_composer._copier(cfg)
    cfg.seed = 2
    assert isinstance(copy(), DictConfig) and copy().seed == 1
