"""What kernels took when they were last looked at, by minor version of what assembles them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REGISTER_SLACK = 8  # registers are given out in eights


@dataclass(frozen=True)
class Budget:
    """A file: {version: {label of a row: {its architecture: [registers, bytes of shared memory]}}}."""

    path: Path
    label: Callable
    arch: Callable

    def load(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def write(self, rows, version):
        """Replace the rows of the ops audited in this version's part of the file; one kernel a line."""
        budget = self.load()
        ops = {row["op"] for row in rows}
        kept = {name: value for name, value in budget.get(version, {}).items() if name.split()[0] not in ops}
        for row in rows:
            kept.setdefault(self.label(row), {})[self.arch(row)] = [row["registers"], row["shared"]]
        budget[version] = kept
        parts = []
        for name, part in sorted(budget.items()):
            lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(part.items()))
            parts.append(f"{json.dumps(name)}: {{\n{lines}\n}}")
        self.path.write_text("{\n" + ",\n".join(parts) + "\n}\n")

    def of(self, row, part):
        """[registers, shared memory] of a row in a version's part, which may be None; None if not there."""
        return (part or {}).get(self.label(row), {}).get(self.arch(row))

    def exceeded(self, row, part):
        """What a row takes more than a version's part records: a list of sentences."""
        found = []
        if recorded := self.of(row, part):
            registers, shared = recorded
            if row["registers"] > registers + REGISTER_SLACK:
                found.append(f"{row['registers']} registers; the budget records {registers}")
            if row["shared"] > shared:
                found.append(f"{row['shared']} bytes of shared memory; the budget records {shared}")
        return found
