"""A stand-in for Slurm's commands: runs an array's tasks one after the other, and again when they are requeued.

`install` puts sbatch, srun, sacct and scontrol into a folder for PATH. The folder that SLURM_STAND_IN names gets
script.sh (the last one submitted), pid_<task> of the tasks begun, and requeued, a line for each request.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ.get("SLURM_STAND_IN", ""))
JOB = "17"


def install(folder: Path) -> None:
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        (folder / name).chmod(0o755)


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    (STATE / "script.sh").write_text(text)
    (STATE / "requeued").touch()
    found = re.search(r"--array=0-(\d+)", text)
    last = found[1] if found else "0"
    with (STATE / "log").open("w") as log:  # not the pipe that the submitter reads to its end
        subprocess.Popen([sys.executable, __file__, "work", last], stdout=log, stderr=log, start_new_session=True)
    print(f"Submitted batch job {JOB}")


def work(last: str) -> None:
    todo = [str(task) for task in range(int(last) + 1)]
    for task in todo:
        before = len((STATE / "requeued").read_text().split())
        array = {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": task}
        subprocess.run(["bash", STATE / "script.sh"], env={**os.environ, "SLURM_JOB_ID": JOB, **array})
        todo += [name.removeprefix(f"{JOB}_") for name in (STATE / "requeued").read_text().split()[before:]]


def srun(*arguments: str) -> None:
    command = list(arguments)
    while command[0].startswith("--"):
        if command.pop(0) in ("--output", "--error"):
            command.pop(0)
    (STATE / f"pid_{os.environ['SLURM_ARRAY_TASK_ID']}").write_text(str(os.getpid()))
    os.execvp(command[0], command)


def scontrol(action: str, job: str) -> None:
    with (STATE / f"{action}d").open("a") as file:
        file.write(f"{job}\n")


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")


if __name__ == "__main__":
    {function.__name__: function for function in (sbatch, work, srun, scontrol, sacct)}[sys.argv[1]](*sys.argv[2:])
