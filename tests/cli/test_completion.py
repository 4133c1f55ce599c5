"""Shell completion, as click gives it and docs/install.md says."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from mirnet_fast.cli import main

ROOT = Path(__file__).parents[2]
VARIABLE = "_MIRNET_FAST_COMPLETE"


def asked(instruction, **environment):
    environment = {VARIABLE: instruction, **environment}
    return CliRunner().invoke(main, env=environment, prog_name="mirnet-fast")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for(shell):
    result = asked(f"{shell}_source")
    assert result.exit_code == 0 and f"{VARIABLE}={shell}_complete" in result.output
    assert f"{VARIABLE}={shell}_source mirnet-fast" in (ROOT / "docs/install.md").read_text()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("pro", {"profile"}),
        ("compare --thr", {"--threads"}),
        ("profile --dtype b", {"bfloat16"}),
        ("submit s", {"sidd"}),
    ],
)
def test_words_are_completed(words, completed):
    words = f"mirnet-fast {words}"
    result = asked("bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    assert {line.partition(",")[2] for line in result.output.splitlines()} == completed
