"""Plotly figures of a front and of the progress of a search, from data frames."""

from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..orchestrator.format import number
from ..orchestrator.palette import ACCENT, COLOR_SCALE, FAINT_GRAY, GRAY
from .queries import Quantity

GRID = 60  # cells per side of the grid in which the background shows one point per cell


def front(
    points: pd.DataFrame,
    axes: dict[str, Quantity],
    logs: set[str],
    *,
    chosen: str | None,
    connected: bool,
    models: pd.DataFrame | None = None,
) -> go.Figure:
    """The front, with all other candidates in the background.

    `axes` has x, y and color; `logs` names the logarithmic ones. The first entry of a mark's custom
    data is the key of its candidate. `connected` draws the front as a line, which is right only if
    x and y are all the objectives. `models` are published models, which cannot be chosen.
    """
    best = points.query("on_front").sort_values("x_value")
    rest = _thinned(points.query("not on_front"), logs)
    figure = go.Figure(
        [
            _background(rest.query("feasible"), axes, "dominated", "circle"),
            _background(rest.query("not feasible"), axes, "violates a constraint", "x-thin-open"),
            _foreground(best, axes, log_color="color" in logs, connected=connected),
            _ring(points.loc[points["key"] == chosen]),
        ]
    )
    if models is not None:
        figure.add_trace(_models(models, axes))
    figure.update_layout(
        height=480,
        margin={"l": 0, "r": 0, "t": 30, "b": 0},
        dragmode="pan",  # with box or lasso a click selects nothing
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
    )
    for axis, update in (("x", figure.update_xaxes), ("y", figure.update_yaxes)):
        scale = "log" if axis in logs else "linear"
        update(title_text=_title(axes[axis]), type=scale, zeroline=False)
    for _, knee in best.query("knee").iterrows():
        at = {a: np.log10(v) if a in logs else v for a in "xy" for v in [knee[f"{a}_value"]]}
        figure.add_annotation(
            **at, text="◆ knee", font_color=ACCENT, arrowhead=0, arrowcolor=ACCENT, ax=28, ay=-28
        )
    return figure


def hypervolume(steps: pd.DataFrame) -> go.Figure:
    """Hypervolume after each completed trial."""
    figure = go.Figure(
        go.Scatter(
            x=np.arange(1, len(steps) + 1),
            y=steps["hypervolume"],
            customdata=steps[["number", "front_size"]],
            line={"shape": "hv", "width": 2},
            hovertemplate="hypervolume %{y:.3f} after %{x} trials<br>trial %{customdata[0]}, "
            "front %{customdata[1]}<extra></extra>",
        )
    )
    figure.update_layout(height=320, margin={"l": 0, "r": 0, "t": 8, "b": 0})
    figure.update_xaxes(title_text="completed trials", zeroline=False)
    figure.update_yaxes(title_text="hypervolume, fraction of the study's box", rangemode="tozero")
    return figure


def _thinned(rest: pd.DataFrame, logs: set[str]) -> pd.DataFrame:
    cells = pd.DataFrame({"feasible": rest["feasible"]})
    for axis in "xy":
        values = rest[f"{axis}_value"]
        values = np.log10(values.where(values > 0)) if axis in logs else values
        span = values.max() - values.min()
        cells[axis] = ((values - values.min()) / (span or 1) * GRID).round()
    return rest.loc[~cells.duplicated()]


def _background(
    rest: pd.DataFrame, axes: dict[str, Quantity], name: str, symbol: str
) -> go.Scatter:
    marker = {"color": GRAY, "size": 6, "symbol": symbol, "opacity": 0.4, "line_width": 1}
    return go.Scatter(
        **_coordinates(rest), **_hover(rest, axes), name=name, mode="markers", marker=marker
    )


def _foreground(
    best: pd.DataFrame, axes: dict[str, Quantity], *, log_color: bool, connected: bool
) -> go.Scatter:
    return go.Scatter(
        **_coordinates(best),
        **_hover(best, axes),
        name="front",
        mode="lines+markers" if connected else "markers",
        line={"shape": "vh" if axes["x"].better == "higher" else "hv", "width": 1, "color": GRAY},
        error_x=_error(best, "x"),
        error_y=_error(best, "y"),
        marker={
            "opacity": 1,
            "size": np.where(best["knee"], 17, 12),
            "symbol": np.where(best["knee"], "diamond", "circle"),
            "line": {"width": 1, "color": GRAY},
            "colorscale": COLOR_SCALE,
            **_colored(best, axes["color"], log=log_color),
        },
    )


def _models(models: pd.DataFrame, axes: dict[str, Quantity]) -> go.Scatter:
    x, y = escape(axes["x"].name), escape(axes["y"].name)
    return go.Scatter(
        **_coordinates(models),
        name="published",
        mode="markers",
        marker={"symbol": "star-triangle-up-open", "size": 9, "color": ACCENT, "line_width": 1},
        text=models["model"] + "<br>" + models["pattern"].map(escape),
        hovertemplate=f"<b>%{{text}}</b><br>{x}: %{{x:.4g}}<br>{y}: %{{y:.4g}}<extra></extra>",
    )


def _ring(chosen: pd.DataFrame) -> go.Scatter:
    marker = {"size": 24, "symbol": "circle-open", "color": ACCENT, "line_width": 2.5}
    return go.Scatter(
        **_coordinates(chosen), name="chosen", mode="markers", marker=marker, hoverinfo="skip"
    )


def _coordinates(frame: pd.DataFrame) -> dict[str, Any]:
    return {"x": frame["x_value"].to_numpy(), "y": frame["y_value"].to_numpy()}


def _hover(frame: pd.DataFrame, axes: dict[str, Quantity]) -> dict[str, Any]:
    lines = ["<b>%{customdata[0]}</b>  trial %{customdata[1]}", "%{customdata[2]}"]
    lines += [
        f"{escape(quantity.name)}: %{{customdata[{3 + index}]}}"
        for index, quantity in enumerate(axes.values())
    ]
    numbers = [frame[f"{axis}_value"].map(number) for axis in axes]
    data = pd.concat([frame[["key", "number", "pattern"]], *numbers], axis=1)
    return {"customdata": data.to_numpy(), "hovertemplate": "<br>".join(lines) + "<extra></extra>"}


def _error(best: pd.DataFrame, axis: str) -> dict[str, Any]:
    value, low, high = (best[f"{axis}_{field}"] for field in ("value", "low", "high"))
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - value).to_numpy(),
        "arrayminus": (value - low).to_numpy(),
        "color": FAINT_GRAY,
        "thickness": 1,
        "width": 3,
        "visible": bool((high > low).any()),
    }


def _colored(best: pd.DataFrame, quantity: Quantity, *, log: bool) -> dict[str, Any]:
    values = best["color_value"].to_numpy(dtype=float)
    bar: dict[str, Any] = {
        "title": {"text": _title(quantity), "side": "right"},
        "thickness": 12,
        "outlinewidth": 0,
    }
    if log and len(values):
        values = np.log10(values)
        decades = np.arange(np.floor(values.min()), np.ceil(values.max()) + 1)
        ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        bar |= {"tickvals": np.log10(ticks), "ticktext": [number(tick) for tick in ticks]}
    return {"color": values, "colorbar": bar}


def _title(quantity: Quantity) -> str:
    return f"{escape(quantity.name)}<br><sup>{escape(quantity.source)}</sup>"
