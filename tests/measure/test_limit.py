"""MFU and the phases that limit a run, on numbers computed by hand."""

import pytest

from laptime.measure import peak
from laptime.measure.limit import limit, training_advice
from laptime.record.schema import Breakdown, Peak

pytestmark = pytest.mark.unit

NOT_MEASURED = Breakdown()


def breakdown(**seconds: float) -> Breakdown:
    return Breakdown(**{f"{phase}_s": value for phase, value in seconds.items()}, step_s=sum(seconds.values()))


def limit_of(
    samples_per_s=100.0,
    phases=NOT_MEASURED,
    flops_per_sample=1000,
    pipeline="workers",
    precision="32-true",
    disturbances=(),
) -> Peak:
    advice = training_advice(pipeline, precision)
    return limit(flops_per_sample, samples_per_s, 10, peak.Peak(1e6, 1e6), phases, 1000, advice, disturbances)


def test_mfu_and_bandwidth():
    one = limit_of(phases=breakdown(forward=0.02, backward=0.03, optimizer=0.01))
    assert one.achieved_flop_per_s == 1e5
    assert one.mfu == 0.1
    assert one.compute_mfu == pytest.approx(10 * 1000 / 0.05 / 1e6)
    assert one.optimizer_bytes_per_s == pytest.approx(1e5)


def test_near_the_limit_is_in_the_verdict():
    assert limit_of(700.0).verdict == "near the limit: 70% MFU (peak: the fastest matrix product measured here)"
    assert "near the limit" not in limit_of(650.0).verdict


def test_an_efficient_phase_is_named_without_advice():
    verdict = limit_of(650.0, breakdown(forward=0.005, backward=0.005, communication=0.004, optimizer=0.001)).verdict
    assert "forward and backward take 67%, at 100% MFU; waiting for the gradients of other" in verdict


def test_settings_that_are_in_use_are_not_advised():
    phases = breakdown(forward=0.3, backward=0.3, data=0.4, optimizer=0.01)
    assert "dataset.pipeline=memory" in limit_of(phases=phases).verdict
    assert "dataset.pipeline=memory" not in limit_of(phases=phases, pipeline="memory").verdict
    assert "bf16-mixed" in limit_of(phases=phases).verdict
    assert "bf16-mixed" not in limit_of(phases=phases, precision="bf16-mixed").verdict


def test_interference_with_the_probe_is_in_the_verdict():
    verdict = limit_of(disturbances=("other processes kept 60% of the cores busy",)).verdict
    assert verdict.endswith(
        "under interference (other processes kept 60% of the cores busy): the true peak may be higher"
    )


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        ("data", "waiting for batches takes 80%"),
        ("host_to_device", "copying batches to the device takes 80%"),
        ("communication", "waiting for the gradients of other ranks takes 80%"),
        ("optimizer", "the optimizer takes 80%"),
        ("forward", "forward and backward take 90%"),
        ("rest", "everything else takes 80%"),
    ],
)
def test_the_longest_phase_is_named_first(phase, text):
    phases = {"forward": 0.05, "backward": 0.05, "optimizer": 0.1} | {phase: 0.8}
    phases["backward"] += 1 - sum(phases.values())
    verdict = limit_of(phases=breakdown(**phases)).verdict
    assert verdict.startswith(f"10% MFU (peak: the fastest matrix product measured here). In a step, {text}")


def test_short_phases_are_not_named():
    verdict = limit_of(phases=breakdown(forward=0.45, backward=0.45, optimizer=0.05, data=0.05)).verdict
    assert "optimizer" not in verdict and "batches" not in verdict


def test_without_flops_or_epochs_there_is_no_verdict():
    for unknown in (limit_of(flops_per_sample=None), limit_of(samples_per_s=None)):
        assert unknown.verdict is None and unknown.mfu is None


def test_without_a_breakdown_the_verdict_is_the_mfu():
    assert limit_of().verdict == "10% MFU (peak: the fastest matrix product measured here)"


def test_an_impossible_mfu_is_reported_as_unknown():
    one = limit_of(1200.0, breakdown(forward=0.001, backward=0.001, optimizer=0.001))
    assert one.verdict.startswith("MFU unknown: 500% is impossible")
    assert one.mfu == pytest.approx(1.2)
