"""A sweep on a terminal, which sends Ctrl-C to the command and to its ranks."""

from pathlib import Path

from laptime.record.files import read_record
from tests.support.processes import until
from tests.support.settings import NO_REPORT, TINY
from tests.support.terminal import Terminal

SCRIPT = Path(__file__).with_name("user_classes") / "train_on_terminal.py"


def test_ctrl_c_on_a_terminal_ends_the_sweep_in_the_middle_of_a_run(start, work_folder):
    with Terminal() as terminal:
        sweep = start(
            terminal.path, "-m", *TINY, NO_REPORT, "seed=1,2", "strategy.world_size=2", "training.epochs=100000",
            "+callbacks.pause={_target_:pauses.PauseOnce,epoch:1}", "hydra.sweep.dir=s",
            script=SCRIPT, new_session=True,
        )  # fmt: skip
        until((work_folder / "paused").exists, sweep)
        terminal.type(b"\x03")
        until(lambda: "^C" in terminal.text, sweep)
        (work_folder / "go on").touch()
        assert sweep.wait() == 130
        until(lambda: "Resume with: laptime sweep.resume=s" in terminal.text)
        assert "1 of 2 runs of the sweep were not started" in terminal.text
        assert "Traceback" not in terminal.text
    assert read_record(work_folder / "s/0")["status"] == "interrupted"
    assert not (work_folder / "s/1").exists()
