"""Figures of report.html as plain plotly dictionaries (data, layout): no plotly object is built, so nothing heavy is imported.

Labels come escaped: plotly reads a little html in them. Colours of text, lines and grid are left to the page, which follows the
reader's light or dark setting (utils/report_page.py).
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.joints import T21_NAMES
from utils.score import Scores
from utils.score_metrics import CURVES, METRICS, UV_CURVE

Figure = dict[str, Any]
COLOURS = ("#3b78c2", "#e07b39", "#3f9c6b", "#a562b0", "#c94f5c", "#7d8a3a")  # told apart by colour-blind readers too
TRUTH = "#9aa3ad"
BINS = 48


def colour(index: int) -> str:
    """Colour of the index-th run, the same in every figure."""
    return COLOURS[index % len(COLOURS)]


def pck(runs: Sequence[tuple[str, Scores]], which: str) -> Figure:
    """PCK curves of `joints` or `verts`, solid with wrists aligned, dotted Procrustes-aligned; or of `uv`, 2D joints."""
    unit = "px" if which == UV_CURVE else "mm"
    data = []
    for index, (label, scores) in enumerate(runs):
        curves = scores.summary["curves"]
        for key, dash in ((which, "solid"), (f"pa_{which}", "dot"))[:1 if which == UV_CURVE else 2]:
            data.append({"type": "scatter", "mode": "lines", "x": curves[f"thresholds_{unit}"], "y": rounded(curves[key], 5),
                         "name": label if key == which else f"{label}, PA", "line": {"color": colour(index), "dash": dash},
                         "legendgroup": label, "showlegend": key == which,
                         "hovertemplate": f"%{{y:.1%}} within %{{x:.1f}} {unit}"})
    layout = _layout(f"threshold, {unit} ({CURVES.get(which, '2D joints')})", "share within threshold")
    layout["yaxis"] |= {"range": [0, 1.01], "tickformat": ".0%"}
    return {"data": data, "layout": layout}


def by_joint(runs: Sequence[tuple[str, Scores]], metric: str = "mpjpe_mm") -> Figure:
    """Mean error of each joint: mpjpe_mm (all but the wrist, which is aligned) or uv_px."""
    first, unit = (1, "mm") if metric == "mpjpe_mm" else (0, METRICS[metric].unit)
    names = [name.replace("_", " ") for name in T21_NAMES[first:]]
    data = []
    for index, (label, scores) in enumerate(runs):
        table = scores.summary["by_joint"]
        trace = {"type": "bar", "x": names, "y": rounded(table[metric][first:]), "name": label,
                 "marker": {"color": colour(index)}, "hovertemplate": f"%{{x}}: %{{y:.1f}} {unit}"}
        if first:
            trace["customdata"] = rounded(table["pa_mpjpe_mm"][1:])
            trace["hovertemplate"] = "%{x}: %{y:.1f} mm (PA %{customdata:.1f})"
        data.append(trace)
    return {"data": data, "layout": _layout("", f"mean error, {unit}") | {"barmode": "group", "xaxis": {"tickangle": -45}}}


def by_subject(runs: Sequence[tuple[str, Scores]], metric: str = "mpvpe_mm") -> Figure:
    """Mean of `metric` for each person."""
    unit = METRICS[metric].unit
    people = list(dict.fromkeys(p for _, scores in runs for p in scores.summary["by_subject"]))
    data = []
    for index, (label, scores) in enumerate(runs):
        table = scores.summary["by_subject"]
        known = [p for p in people if metric in table.get(p, {})]
        data.append({"type": "bar", "x": [f"person {p}" for p in known], "y": rounded([table[p][metric] for p in known]),
                     "name": label, "customdata": [int(table[p]["n"]) for p in known], "marker": {"color": colour(index)},
                     "hovertemplate": f"%{{x}}: %{{y:.2f}} {unit}, %{{customdata:,}} frames"})
    return {"data": data, "layout": _layout("", f"{METRICS[metric].title}, {unit}") | {"barmode": "group"}}


def histogram(runs: Sequence[tuple[str, Scores]], metric: str) -> Figure:
    """How the frames' errors spread: share of frames per bin."""
    title, unit = METRICS[metric].title, METRICS[metric].unit
    values = [scores.samples[metric][np.isfinite(scores.samples[metric])] for _, scores in runs]
    top = max(float(np.percentile(v, 99.5)) for v in values) or 1.0
    edges = np.linspace(0, top, BINS + 1)
    data = []
    for index, ((label, _), value) in enumerate(zip(runs, values)):
        share = np.histogram(np.minimum(value, top), edges)[0] / len(value)
        data.append({"type": "scatter", "mode": "lines", "x": rounded((edges[:-1] + edges[1:]) / 2), "y": rounded(share, 5),
                     "name": label, "line": {"color": colour(index), "shape": "hvh"}, "fill": "tozeroy",
                     "fillcolor": _faint(colour(index)), "hovertemplate": f"%{{y:.1%}} of frames at %{{x:.1f}} {unit}"})
    layout = _layout(f"{title} of a frame, {unit} (last bin: and above)", "share of frames")
    layout["yaxis"] |= {"tickformat": ".0%"}
    return {"data": data, "layout": layout}


def calibration(curve: Mapping[str, Any]) -> Figure:
    """Error of the calibrated hand against the number of images (content of a calibration's curve.json)."""
    key = "mesh_error_mm" if curve.get("truth_known") else "mesh_spread_mm"
    data = []
    for index, (method, points) in enumerate(curve["methods"].items()):
        points = [p for p in points if p.get(key) is not None]
        if not points:
            continue
        x, y = [p["n"] for p in points], [p[key] for p in points]
        band = [p.get(f"{key}_interval") for p in points]
        trace = {"type": "scatter", "mode": "lines+markers", "x": x, "y": rounded(y), "name": method,
                 "line": {"color": colour(index)}, "hovertemplate": "%{y:.2f} mm from %{x} images"}
        if all(band):
            trace["error_y"] = {"type": "data", "symmetric": False, "array": rounded([b[1] - v for b, v in zip(band, y)]),
                                "arrayminus": rounded([v - b[0] for b, v in zip(band, y)]), "thickness": 1, "width": 3}
        data.append(trace)
    what = "rest mesh error, mm" if key == "mesh_error_mm" else "spread between draws, mm (truth unknown)"
    layout = _layout("images per person", what)
    ticks = sorted({n for trace in data for n in trace["x"]})
    layout["xaxis"] |= {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [str(n) for n in ticks]}
    return {"data": data, "layout": layout}


def meshes(choices: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, np.ndarray]]]], faces: np.ndarray) -> Figure:
    """Hands to turn. choices: (title, true verts (778,3), [(run, its verts)]) in mm, wrist at the origin, camera axes.

    The prediction is coloured by its distance to the truth; buttons choose the sample, the legend hides a hand.
    """
    data, count = [], 0
    i, j, k = faces.T.tolist()
    for place, (_, true, preds) in enumerate(choices):
        count = 1 + len(preds)
        for index, (label, verts) in enumerate([("truth", true), *preds]):
            x, y, z = rounded(verts[:, 0], 1), rounded(verts[:, 2], 1), rounded(-verts[:, 1], 1)  # plotly's z points up
            trace = {"type": "mesh3d", "x": x, "y": y, "z": z, "i": i, "j": j, "k": k, "name": label, "showlegend": True,
                     "visible": (True if index < 2 else "legendonly") if place == 0 else False, "flatshading": False,
                     "lighting": {"ambient": 0.55, "diffuse": 0.7, "specular": 0.15, "roughness": 0.7}}
            if index == 0:
                trace |= {"color": TRUTH, "opacity": 0.45, "hoverinfo": "name"}
            else:
                distance = np.linalg.norm(verts - true, axis=1)
                trace |= {"intensity": rounded(distance, 1), "colorscale": "Viridis", "cmin": 0, "cmax": 25,
                          "showscale": index == 1, "colorbar": {"title": {"text": "mm"}, "thickness": 12, "len": 0.6},
                          "hovertemplate": "%{intensity:.1f} mm from the truth"}
            data.append(trace)
    axis = {"showbackground": False, "showticklabels": False, "title": {"text": ""}, "showspikes": False}
    buttons = []
    for place, (title, _, _) in enumerate(choices):
        visible: list[Any] = [False] * len(data)
        for index in range(count):
            visible[place * count + index] = True if index < 2 else "legendonly"
        buttons.append({"label": title, "method": "restyle", "args": [{"visible": visible}]})
    # Light in both settings: plotly's active button is.
    menu = {"type": "buttons", "direction": "right", "x": 0, "y": 1.08, "xanchor": "left", "buttons": buttons,
            "bgcolor": "#dfe5ea", "bordercolor": "#c3cad1", "font": {"color": "#1f2328"}}
    layout = {"scene": {"aspectmode": "data", "xaxis": axis, "yaxis": axis, "zaxis": axis,
                        "camera": {"eye": {"x": 0.0, "y": -1.7, "z": 0.35}}},
              "margin": {"l": 0, "r": 0, "t": 40, "b": 0}, "height": 520, "legend": {"orientation": "h"}, "updatemenus": [menu]}
    return {"data": data, "layout": layout}


def rounded(values: Any, digits: int = 3) -> list[float]:
    """A list of numbers short enough for a page."""
    return np.round(np.asarray(values, float), digits).tolist()


def _faint(hexadecimal: str) -> str:
    red, green, blue = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"


def _layout(x: str, y: str) -> Figure:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "rangemode": "tozero"}, "height": 360,
            "margin": {"l": 56, "r": 12, "t": 12, "b": 56}, "legend": {"orientation": "h", "y": 1.14, "x": 0},
            "hovermode": "closest"}
