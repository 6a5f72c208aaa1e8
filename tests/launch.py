"""A script run in this process, as a shell would run it."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from experiments.shared import cli


def run_in_process(
    monkeypatch, capsys, config: type[Any], main: Callable, *flags: str, parse: Callable = cli.parse
) -> tuple[int, str, str]:
    """Return (exit status, stdout, stderr) of a script with these flags."""
    monkeypatch.setattr(sys, "argv", [main.__module__.split(".")[1], *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(config, main, parse)
    return int(stop.value.code or 0), *capsys.readouterr()
