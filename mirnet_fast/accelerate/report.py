"""What accelerate() tells its caller."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Replaced:
    """A module that is ours now: its first name in the model, its former class, our class."""

    name: str
    class_name: str
    with_what: str


@dataclass(frozen=True)
class Skipped:
    """A module that looked like one of ours and stayed as it was, with the reason."""

    name: str
    class_name: str
    reason: str


@dataclass
class Report:
    """What accelerate() did. A module with several names in the model is listed once, by its first."""

    replaced: list[Replaced] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.replaced and not self.skipped:
            return "mirnet_fast: nothing to replace was found"
        modules = "module" if len(self.replaced) == 1 else "modules"
        lines = [f"mirnet_fast: {len(self.replaced)} {modules} replaced, {len(self.skipped)} skipped"]
        groups = {}
        for entry in self.replaced:
            groups.setdefault((entry.class_name, entry.with_what), []).append(entry.name)
        for (class_name, with_what), names in groups.items():
            shown = ", ".join(name or "the model itself" for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  {class_name} -> {with_what}: {shown}{more}")
        for entry in self.skipped:
            lines.append(f"  skipped {entry.name or 'the model itself'} ({entry.class_name}): {entry.reason}")
        return "\n".join(lines)
