"""Shell completion of `laptime`: the words that it offers, and bash's own completion function."""

import subprocess

import pytest
from tests.support.processes import DEADLINE_S

from laptime.cli.completion import complete
from laptime.cli.dispatch import COMMANDS

# Types a line in a real bash: the function that `complete` has registered is called as Tab would call it.
TYPED = """\
eval "$(laptime --shell-completion install=bash)"
[[ $(complete -p laptime) == *hydra_bash_completion* ]] || exit 3
COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
[[ $1 == *" " ]] && COMP_CWORD=$((COMP_CWORD + 1))
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("e", ["evaluate", "export", "experiment="]),
        ("train model=c", ["model=cnn"]),
        ("model=c", ["model=cnn"]),
        ("-m model=cnn model.chan", ["model.channels."]),
        ("tune ", ["batch_size", "lr"]),
        ("tune lr model=c", ["model=cnn"]),
        ("tune lr --pl", ["--plot"]),
        ("evaluate late", ["latency."]),
        ("export int", ["int8="]),
        ("watch lat", ["latest"]),
        ("watch latest --", ["--help", "--version", "--once", "--interval", "--notify"]),
        ("help e", ["evaluate", "export"]),
        ("export format=", ["format=onnx", "format=torch_export", "format=torchscript", "format=all"]),
        ("export format=onnx,torch_", ["format=onnx,torch_export"]),
        ("evaluate run=latest device=c", ["device=cpu", "device=cuda"]),
        ("evaluate run=", ["run=latest", "run=multirun/"]),
        ("export run=mul", ["run=multirun/"]),
        ("sweep.resume=", ["sweep.resume=latest", "sweep.resume=multirun/"]),
        ("--ex", []),
        ("--config-", ["--config-dir", "--config-name"]),
        ("analyze mul", ["multirun/"]),
        ("analyze --out ", []),
        ("doctor --j", ["--json"]),
        ("train model=nonsense model.", []),
        ("evalute run", []),
    ],
)
def test_a_word_is_completed_by_what_its_command_takes(line, offered, work_folder, capfd):
    (work_folder / "multirun").mkdir()
    assert sorted(complete(line)) == sorted(offered)
    assert capfd.readouterr() == ("", "")


def test_the_first_word_can_be_a_command_or_an_override():
    words = complete("")
    assert set(COMMANDS) <= set(words) and {"model=", "training."} <= set(words)


def test_a_folder_with_configuration_of_the_users_own_is_completed(work_folder):
    (work_folder / "conf/model").mkdir(parents=True)
    (work_folder / "conf/model/my_net.yaml").write_text("_target_: my_net.Net\n")
    assert complete("--config-dir conf model=my") == ["model=my_net"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [("laptime do", "doctor\n"), ("laptime train model=c", "model=cnn\n"), ("laptime watch --o", "--once\n")],
)
def test_bash_completes(line, expected, installed):
    done = subprocess.run(
        ["bash", "-c", TYPED, "bash", line], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)
