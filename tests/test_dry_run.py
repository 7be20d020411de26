"""What a sweep would do, without doing it (`sweep.dry_run`), after real runs."""

from pathlib import Path

import pytest

from laptime.cli import main
from laptime.estimate import Known, estimate
from laptime.record import read_record

QUICK = ["dataset.limit=1000", "training.epochs=2", "logger=none", "measure.breakdown=false", "measure.peak=false"]


def typed(arguments: list[str], capfd) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capfd.readouterr()
    return int(end.value.code or 0), " ".join(captured.out.split()) + captured.err


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_without_records_it_lists_the_runs_and_guesses_nothing(work_folder, capfd):
    code, text = typed(["-m", *QUICK, "seed=1,2", "model.dropout=0.1,0.2", "sweep.dry_run=true"], capfd)
    assert code == 0
    for swept in ("seed=1 model.dropout=0.1", "seed=2 model.dropout=0.2"):
        assert swept in text
    assert "4 runs to do of 4; no record at hand tells how long" in text
    assert list(work_folder.iterdir()) == []


def test_it_says_what_a_resumed_sweep_would_do_and_what_that_takes(work_folder, capfd):
    assert typed(["-m", *QUICK, "seed=1,2", "hydra.sweep.dir=multirun/s"], capfd)[0] == 0
    before = files(work_folder)
    code, text = typed(["sweep.resume=multirun/s", "seed=1,2,3", "sweep.dry_run=true"], capfd)
    assert code == 0
    assert text.count("completed, skipped") == 2 and "1 run to do of 3, about" in text
    assert "2 runs of the same configuration" in text
    assert files(work_folder) == before
    # And the sweep itself runs as if nothing had been asked.
    assert typed(["sweep.resume=multirun/s", "seed=1,2,3"], capfd)[0] == 0
    assert read_record(work_folder / "multirun/s/2")["status"] == "completed"


def test_a_mistake_is_found_before_the_night(work_folder, capfd):
    code, text = typed(["-m", *QUICK, "training.batch_size=64,0", "sweep.dry_run=true"], capfd)
    assert code == 2 and "training.batch_size=0" in text


@pytest.mark.parametrize("override", ["sweep.dry_run=true", "sweep.notify=x"])
def test_a_single_run_has_none(override, work_folder, capfd):
    code, text = typed([*QUICK, override], capfd)
    assert code == 2 and f"error: {override}: is for sweeps. Add -m." in text


def known(**changed) -> Known:
    hashed = {"model.width": 8, "training.epochs": 2, "seed": 1, "optimizer.lr": 0.1, "device": "cpu"}
    return Known(hashed | changed.pop("hashed", {}), **({"epoch_s": 3.0, "rest_s": 1.0, "num_bytes": 100} | changed))


def test_time_grows_with_epochs_and_the_rest_is_paid_once():
    wanted = known().hashed | {"training.epochs": 10, "seed": 7}
    found = estimate(wanted, [known(), known(epoch_s=5.0), known(epoch_s=4.0)])
    assert found is not None
    assert found.seconds == 1.0 + 10 * 4.0 and found.num_bytes == 100
    assert found.basis == "3 runs of the same configuration"


def test_the_same_configuration_counts_before_a_similar_one():
    same, similar = known(epoch_s=3.0), known(epoch_s=9.0, hashed={"optimizer.lr": 0.5})
    assert estimate(same.hashed, [similar, same]).seconds == 7.0
    only = estimate(same.hashed, [similar])
    assert only.seconds == 19.0 and only.basis.startswith("1 run of another")
    assert estimate(same.hashed, [known(hashed={"model.width": 16})]) is None
