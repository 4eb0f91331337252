"""What a sweep knows of its runs: which are finished, what each came to, and which are missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from bench import catalog
from bench.records import Environment, Group, Measurement, Planned, Protocol, Status, run_key
from bench.store import Finished, Store
from bench.store.folder import group_of, part_name

MAX_ATTEMPTS = 2  # of a run that was throttled: once more, both kept


@dataclass(slots=True)
class Journal:
    """The parts of one results folder, for one protocol and environment; read once, then kept up to date.

    Attributes:
        store: The folder.
        protocol: How runs measure.
        environment: Where they run.
    """

    store: Store
    protocol: Protocol
    environment: Environment
    _finished: dict[str, Finished] | None = None
    _groups: dict[str, Group] = field(default_factory=dict)

    def part(self, run: Planned, attempt: int) -> str:
        """The name of the part that holds this attempt once it is finished."""
        group = self._groups.get(run.code_key)
        if group is None:
            group = self._groups.setdefault(run.code_key, group_of(run, self.protocol, self.environment))
        return part_name(run, attempt, run_key(run.case.key, group, run.repeat, attempt))

    def attempts(self, run: Planned) -> list[Finished]:
        """What the attempts at a run came to, in order; empty if it is missing."""
        finished = self._known()
        done: list[Finished] = []
        while (found := finished.get(self.part(run, len(done)))) is not None:
            done.append(found)
        return done

    def refusal(self, run: Planned) -> str | None:
        """Why the case cannot run, as its first repeat found out in its process; `None` if it did not."""
        first = self.attempts(replace(run, repeat=0)) if run.repeat else []
        return first[-1].reason if first and first[-1].status is Status.SKIPPED else None

    def missing(self, plan: Iterable[Planned], retry: frozenset[Status] = frozenset()) -> list[tuple[Planned, int]]:
        """Every run without a part, and those whose status is to be tried again, each with its attempt."""
        todo = []
        for run in plan:
            if run.skip_reason is not None:
                continue
            done = [attempt.status for attempt in self.attempts(run)]
            throttled = done == [Status.THROTTLED]  # the sweep ended before its second attempt
            if not done or throttled or done[-1] in retry:
                todo.append((run, len(done)))
        return todo

    def write(
        self, run: Planned, attempt: int, measurement: Measurement, environment: Environment | None = None
    ) -> None:
        """Append one run; raises what `Store.write_run` raises. `environment` is that of an equal device."""
        finished = self._known()
        row = self.store.write_run(
            run, attempt, self.protocol, measurement, environment_of(run, environment or self.environment)
        )
        finished[self.part(run, attempt)] = Finished.of(row)

    def _known(self) -> dict[str, Finished]:
        if self._finished is None:
            self._finished = self.store.finished_runs()
        return self._finished


def environment_of(run: Planned, environment: Environment) -> Environment:
    """What of an environment a run's row says: timm's version where the model is timm's."""
    return environment if catalog.package_of(run.case.model.name) == "timm" else replace(environment, timm_version=None)
