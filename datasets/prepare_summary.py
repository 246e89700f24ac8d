"""What a preparation did, for the person who ran it."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prepared:
    """What prepare did: the folder, and the counts that are in its counts.json. str() is the text to print."""

    folder: Path
    counts: dict[str, Any]

    def __str__(self) -> str:
        return summary_text(self.counts, self.folder)


def summary_text(summary: dict, folder: str | Path) -> str:
    """What run.py prints at the end."""
    speed = summary["frames_now"] / max(summary["seconds"], 1e-9)
    parts = [f"{len(value) if isinstance(value, list) else value} {name}"
             for name in ("people", "sequences", "cameras") if (value := summary.get(name))]
    lines = [f"{summary['kept']} of {summary['frames']} frames kept" + (f", of {', '.join(parts)}" if parts else "")
             + f" -> {folder}"]
    lines += [f"  {line}" for line in summary.get("notes", [])]
    lines += [f"  left out: {n} {reason}" for reason, n in summary["excluded"].items() if n]
    lines += [f"    e.g. {line}" for several in summary["examples"].values() for line in several[:2]]
    lines.append(f"{speed:.0f} frames/s, {summary['seconds']:.0f} s, {summary['workers']} processes" if summary["frames_now"]
                 else "everything was there already")
    return "\n".join(lines)
