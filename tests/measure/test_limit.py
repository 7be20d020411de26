"""What held a run back, on numbers worked out by hand."""

import pytest

from laptime.measure import peak
from laptime.measure.limit import limit, own_advice
from laptime.record.schema import Breakdown, Peak

pytestmark = pytest.mark.unit

NOT_MEASURED = Breakdown()


def breakdown(**seconds: float) -> Breakdown:
    return Breakdown(**{f"{part}_s": value for part, value in seconds.items()}, step_s=sum(seconds.values()))


def found(
    samples_per_s=100.0,
    parts=NOT_MEASURED,
    flops_per_sample=1000,
    pipeline="workers",
    precision="32-true",
    disturbances=(),
) -> Peak:
    advice = own_advice(pipeline, precision)
    return limit(flops_per_sample, samples_per_s, 10, peak.Peak(1e6, 1e6), parts, 1000, advice, disturbances)


def test_fractions_of_the_peak():
    one = found(parts=breakdown(forward=0.02, backward=0.03, optimizer=0.01))
    assert one.achieved_flop_per_s == 1e5
    assert one.mfu == 0.1
    assert one.compute_mfu == pytest.approx(10 * 1000 / 0.05 / 1e6)
    assert one.optimizer_bytes_per_s == pytest.approx(1e5)


def test_near_the_limit_is_said():
    assert found(700.0).verdict == "near the limit: 70% of the fastest matrix product here"
    assert "near the limit" not in found(650.0).verdict


def test_what_is_efficient_gets_no_advice_and_is_named_all_the_same():
    verdict = found(650.0, breakdown(forward=0.005, backward=0.005, communication=0.004, optimizer=0.001)).verdict
    assert "forward and backward take 67%, at 100% of that rate; waiting for the gradients of other" in verdict


def test_nothing_is_advised_that_is_so_already():
    parts = breakdown(forward=0.3, backward=0.3, data=0.4, optimizer=0.01)
    assert "dataset.pipeline=memory" in found(parts=parts).verdict
    assert "dataset.pipeline=memory" not in found(parts=parts, pipeline="memory").verdict
    assert "bf16-mixed" in found(parts=parts).verdict
    assert "bf16-mixed" not in found(parts=parts, precision="bf16-mixed").verdict


def test_a_disturbed_probe_says_so():
    verdict = found(disturbances=("other processes kept 60% of the cores busy",)).verdict
    assert verdict.endswith(
        "measured under interference (other processes kept 60% of the cores busy): it may be faster"
    )


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("data", "waiting for batches takes 80%"),
        ("host_to_device", "copying batches to the device takes 80%"),
        ("communication", "waiting for the gradients of other ranks takes 80%"),
        ("optimizer", "the optimizer takes 80%"),
        ("forward", "forward and backward take 90%"),
        ("rest", "what is in no part takes 80%"),
    ],
)
def test_the_largest_part_is_named_first(part, words):
    parts = {"forward": 0.05, "backward": 0.05, "optimizer": 0.1} | {part: 0.8}
    parts["backward"] += 1 - sum(parts.values())
    verdict = found(parts=breakdown(**parts)).verdict
    assert verdict.startswith(f"10% of the fastest matrix product here. Of a step, {words}")


def test_small_parts_are_not_named():
    verdict = found(parts=breakdown(forward=0.45, backward=0.45, optimizer=0.05, data=0.05)).verdict
    assert "optimizer" not in verdict and "batches" not in verdict


def test_without_flops_or_epochs_nothing_is_claimed():
    for unknown in (found(flops_per_sample=None), found(samples_per_s=None)):
        assert unknown.verdict is None and unknown.mfu is None


def test_without_a_breakdown_the_fraction_alone():
    assert found().verdict == "10% of the fastest matrix product here"


def test_what_cannot_be_is_not_called_near_the_limit():
    one = found(1200.0, breakdown(forward=0.001, backward=0.001, optimizer=0.001))
    assert one.verdict.startswith("not known: 500% of the fastest matrix product that was found can't be")
    assert one.mfu == pytest.approx(1.2)
