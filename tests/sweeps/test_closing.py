"""The last lines of a sweep."""

import pytest

from laptime.sweeps.closing import print_summary


@pytest.mark.unit
@pytest.mark.parametrize(("is_resumed", "runs"), [(False, "runs of the sweep"), (True, "remaining runs of the sweep")])
def test_a_resumed_sweep_counts_its_remaining_runs(is_resumed, runs, tmp_path, capsys):
    print_summary(tmp_path, [], 3, 1, None, is_resumed)
    assert f"3 of 3 {runs} were not started." in capsys.readouterr().err
