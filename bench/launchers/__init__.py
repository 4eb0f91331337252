"""Where runs are executed: this machine now, clusters later."""

from bench.launchers.conversation import Answer, Outcome
from bench.launchers.local import LocalLauncher

__all__ = ["Answer", "LocalLauncher", "Outcome"]
