"""The command line: quick help, and errors that name what is valid."""

import subprocess
import sys
from importlib import import_module

import pytest

from mmkd_lite.__main__ import COMMANDS, main
from mmkd_lite.notebook import repository_root


def test_help_lists_every_command_and_loads_nothing_heavy():
    script = (
        "import sys; from mmkd_lite.__main__ import main; main(['--help']); "
        "print(sorted({'torch', 'timm', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        cwd=repository_root(),
    )  # fmt: skip
    for name in COMMANDS:
        assert f"  {name} " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_explains_itself(name, capsys):
    module, function, _ = COMMANDS[name]
    assert callable(getattr(import_module(module), function))
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: python -m mmkd_lite {name}" in capsys.readouterr().out


def test_a_wrong_command_is_answered_with_the_list(capsys):
    assert main(["reproduse"]) == 2
    message = capsys.readouterr().err
    assert "'reproduse'" in message and "reproduce" in message and "compare" in message


def test_no_command_is_an_error_with_the_list(capsys):
    assert main([]) == 2
    assert "reproduce" in capsys.readouterr().out


def test_an_unknown_notebook_is_answered_with_the_valid_ones(capsys):
    assert main(["reproduce", "--only", "99"]) == 1
    message = capsys.readouterr().err
    assert "'99'" in message and "00_start_here" in message


def test_an_unknown_scale_is_answered_with_the_valid_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", "--scale", "huge"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "huge" in message and all(scale in message for scale in ("tiny", "laptop", "full"))


def test_interrupting_ends_with_the_usual_status(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmkd_lite.reproduce.reproduce_command", interrupted)
    assert main(["reproduce"]) == 130
    assert "goes on from here" in capsys.readouterr().err
