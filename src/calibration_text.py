"""What `calibrate` prints: who was calibrated, from what, how sure; then, where the truth is known, how right that was."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.calibration_coverage import coverage_note

PEOPLE = 12  # lines of people at most; all of them are in calibration.json


def result_text(folder: Path, summary: Mapping[str, Any], curve: Mapping[str, Any] | None, covered: Mapping[str, Any] | None,
                ) -> str:
    """A few lines about a calibration: contents of calibration.json, curve.json and coverage.json (None where there is none)."""
    people = summary["people"]
    lines = [_person(entry) for entry in people[:PEOPLE]]
    if len(people) > PEOPLE:
        lines.append(f"... and {len(people) - PEOPLE} more, see calibration.json")
    decided = [entry["stop"]["enough"] for entry in people if entry["stop"]]
    if len(decided) > 1:
        lines.append(f"enough images for {sum(decided)} of {len(decided)} people")
    if curve is not None and curve["truth_known"]:
        lines += _errors(summary, curve)
    if covered is not None:
        lines.append(coverage_note(covered, summary["n"]).strip())
    lines += _posed(summary.get("posed"))
    return "\n".join([*lines, f"{len(people)} identity file{'s' * (len(people) != 1)} -> {folder}"])


def _person(entry: Mapping[str, Any]) -> str:
    from_images = f"{entry['images_used']} images" if entry["images_used"] else "no images"
    if entry["effective_n"] is not None:
        from_images += f" (worth {entry['effective_n']:.1f} independent ones)"
    said = f"subject {entry['subject']}: {from_images}, size by {entry['cue']}, hand of {entry['hand_size_mm']:.0f} mm"
    if entry["stop"]:
        said += f"; {entry['stop']['text']}"
    return said + "".join(f"; WARNING: {line}" for line in entry["warnings"])


def _errors(summary: Mapping[str, Any], curve: Mapping[str, Any]) -> list[str]:
    """Errors of every method at the n that was asked for, or the nearest below."""
    single = curve["single_image"]
    lines = [] if single is None else [
        f"single image: shape error {single['shape_error']:.3f}, rest mesh {single['mesh_error_mm']:.2f} mm, size "
        f"{single['size_error_mm']:.2f} mm"]
    for method, points in curve["methods"].items():
        fitting = [point for point in points if point["n"] <= summary["n"]] if method != "all" else points
        if fitting:
            point = fitting[-1]
            gone = "" if point["recovered"] is None else f" ({100 * point['recovered']['mesh']:.0f} % of the gap recovered)"
            lines.append(f"{method}, n = {point['n']}: shape error {point['shape_error']:.3f}, rest mesh "
                         f"{point['mesh_error_mm']:.2f} mm{gone}, size {point['size_error_mm']:.2f} mm")
    return lines


def _posed(posed: Mapping[str, Any] | None) -> list[str]:
    if posed is None:
        return []
    errors = ", ".join(f"{name} {value:.2f}" for name, value in posed["mpvpe_mm"].items())
    gone = "" if posed["recovered"] is None else "; of the gap recovered: " + ", ".join(
        f"{name} {100 * share:.0f} %" for name, share in posed["recovered"].items())
    return [f"posed hands ({posed['frames']} frames), MPVPE mm by shape: {errors}{gone}"]
