"""Where tasks run: in fresh processes of this machine, in forks of this process, or in this process itself.

`Launcher` is the protocol that everything which needs a task done is written against: `submit` jobs, `wait` for those
that end, `cancel` those in flight, or `run` one. Another place for tasks (Slurm, Ray) is one more file here.
"""

from bench.launchers.in_process import InProcessLauncher
from bench.launchers.local import ForkLauncher, LocalLauncher, interrupt_on_terminate
from bench.launchers.protocol import Answer, Handle, Job, Launcher, Outcome, Send, Task

__all__ = [
    "Answer",
    "ForkLauncher",
    "Handle",
    "InProcessLauncher",
    "Job",
    "Launcher",
    "LocalLauncher",
    "Outcome",
    "Send",
    "Task",
    "interrupt_on_terminate",
]
