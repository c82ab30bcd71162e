"""The command `spp` as a user types it.

`spp` starts a process, a fork of one that has imported the libraries; `inside` calls the command
here.
"""

import os
import subprocess
import sys
from pathlib import Path

from processes import Interpreter, as_begun

MAIN = "from spp.running.cli import main; main()"


def python(
    *args,  # of the interpreter
    cwd: Path | None = None,  # where it runs
    env: dict | None = None,  # added to this process's environment
) -> subprocess.CompletedProcess:  # with stdout and stderr as text
    "Run Python and wait for it."
    command = [*map(str, args)]
    environment = {**os.environ, **(env or {})}
    if command[0] != "-m" and as_begun(environment):
        return Interpreter(command, str(cwd or Path.cwd()), environment).wait()
    return new_python(*command, cwd=cwd, env=env)


def new_python(
    *args,  # of the interpreter
    cwd: Path | None = None,  # where it runs
    env: dict | None = None,  # added to this process's environment
) -> subprocess.CompletedProcess:  # with stdout and stderr as text
    "Run Python from its very beginning, with every import still before it."
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


def spp(
    *args,  # of the command
    cwd: Path | None = None,  # where it runs
    env: dict | None = None,  # added to this process's environment
) -> subprocess.CompletedProcess:  # with stdout and stderr as text
    "Run `spp` and wait for it."
    return python("-c", MAIN, *args, cwd=cwd, env=env)


def inside(
    *args,  # of the command
    cwd: Path | None = None,  # where it runs
) -> subprocess.CompletedProcess:  # as `spp` returns it
    "Run `spp` in this process; an error that would be a traceback is raised."
    from typer.testing import CliRunner

    from spp.running.cli import app

    here = os.getcwd()
    os.chdir(cwd or here)
    try:
        result = CliRunner().invoke(app, [*map(str, args)], prog_name="spp")
    finally:
        os.chdir(here)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(args, result.exit_code, result.stdout, result.stderr)


def refused(
    done: subprocess.CompletedProcess,  # of `spp` or `inside`
    *texts: str,  # what the error must say
    status: int = 2,  # 2: the call was wrong, 1: something failed
) -> None:
    "Assert that the command failed with `status` and one line that holds `texts`."
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr
