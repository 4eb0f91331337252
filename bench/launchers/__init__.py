"""Where runs are executed: this machine now, clusters later."""

from bench.launchers.local import Answer, LocalLauncher, Outcome

__all__ = ["Answer", "LocalLauncher", "Outcome"]
