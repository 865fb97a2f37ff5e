"""The part of a report about one image."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vismoe.data import Sample
from vismoe.inference import Predictor
from vismoe.tasks import Labels
from vismoe.tasks.detection import BoxPrediction

from ..capacity import has_capacity
from ..comparison import answer_of
from ..parts import experts_of_boxes, parts_of_answer
from ..trace import ImageTrace, trace_sample
from .image_figures import box_figure, capacity_overlays, part_figures, routing_overlays
from .page import Page

CAPACITIES = (1.0, 0.5, 0.25)
"""The capacity factors that a report compares."""
MIN_SCORE = 0.3
"""Lowest score of a box that is shown."""
REPEATS = 5
"""Number of timed forward passes at each capacity, after one that is not. The report shows the median."""


def add_image(
    page: Page,
    predictor: Predictor,
    sample: Sample,
    title: str,
    number: int,
    capacities: Sequence[float] = CAPACITIES,
    optimized: Predictor | None = None,
) -> None:
    """Adds an image to a report: its answer, the experts of its patches, what capacities drop, attention rollout, and
    what the answer rests on; of a detector the experts of each found box.

    **Arguments:**

    - `page`: the report.
    - `predictor`: the network, not optimized.
    - `sample`: the image, as the task's `read` returns it.
    - `title`: its name.
    - `number`: its number in the report, from 1; names its files.
    - `capacities`: capacity factors; default 1, 0.5 and 0.25.
    - `optimized`: the same network in its optimized form, see `optimized_copy`, whose time is measured; default None:
      that of `predictor` is.

    **Raises:** ValueError as `trace_image`.
    """
    name = f"image-{number}"
    prepared = predictor.prepare(sample)
    trace = trace_sample(predictor, prepared, title, rollout=True)
    compares = bool(trace.layers) and has_capacity(predictor.model)
    settings = [(capacity, priority) for capacity in capacities for priority in (False, True)] if compares else []
    seconds = _seconds(predictor if optimized is None else optimized, prepared, title, [(), *settings])
    page.heading(f"Image {number}: {title}")
    how = f"median of {REPEATS} after a first one, {'not ' if optimized is None else ''}optimized, routing recorded"
    page.text(f"Answer: {_answers(trace)}. Forward pass: {1e3 * seconds[()]:.1f} ms ({how}).")
    kept = f", of which {trace.kept:.0%} are kept" if compares else ""
    how = (
        "The colour and the number of a patch are its first expert's; the strength is its gate's, relative to the "
        "layer's largest"
    )
    page.figure(
        routing_overlays(trace),
        f"{name}-routing",
        f"The image as the network sees it, and its patches by expert{kept}. {how}."
        if trace.layers
        else "The image as the network sees it. It has no sparse layers.",
    )
    if trace.rollout is None:
        page.text("There is no attention rollout: the attention of this network cannot be read, or is within windows.")
    if trace.layers:
        page.save_table(_patches(trace), f"{name}-patches")
        page.text(f"The experts and gates of all patches: tables/{name}-patches.csv.")
    if compares:
        traces = {each: trace_sample(predictor, prepared, title, *each) for each in settings}
        _add_capacities(page, trace, traces, seconds, name)
    elif trace.layers:
        page.text("The routers of this network have no capacity, so no patch is ever dropped.")
    if isinstance(trace.prediction, BoxPrediction):
        _add_boxes(page, trace, name)
    elif isinstance(predictor.task, Labels):
        _add_parts(page, predictor, prepared, trace, name)


def _answers(trace: ImageTrace) -> str:
    if isinstance(trace.prediction, BoxPrediction):
        return answer_of(trace.prediction)
    pairs: list[tuple[str, float]] = getattr(trace.prediction, "classes", [])
    return ", ".join(f"{name} {probability:.3f}" for name, probability in pairs)


def _patches(trace: ImageTrace) -> list[dict[str, Any]]:
    rows = []
    for layer in trace.layers:
        tables = (layer.expert, layer.weight, layer.priority, layer.mask)
        patches = zip(*(table[layer.prefix :].tolist() for table in tables), strict=True)
        for place, (experts, weights, priority, real) in enumerate(patches):
            where = {"layer": layer.name, "row": place // layer.grid[1], "column": place % layer.grid[1]}
            for choice, (expert, weight) in enumerate(zip(experts, weights, strict=True)):
                if choice == 0 or expert >= 0:
                    own = {"choice": choice, "expert": expert, "weight": weight, "largest_gate": priority}
                    rows.append(where | own | {"padding": not real})
    return rows


def _add_capacities(
    page: Page,
    own: ImageTrace,
    traces: Mapping[tuple[float, bool], ImageTrace],
    seconds: Mapping[tuple[Any, ...], float],
    name: str,
) -> None:
    page.figure(
        capacity_overlays(traces),
        f"{name}-capacity",
        "What each layer keeps at smaller capacities: earlier patches first (by position), or patches with larger "
        "gates first (by priority). Black patches are dropped: they go on through the residual connection alone.",
    )
    entries: list[tuple[str, str, ImageTrace, float]] = [("the model's own", "", own, seconds[()])]
    for (capacity, priority), trace in traces.items():
        order = "priority" if priority else "position"
        entries.append((f"{capacity:g}", order, trace, seconds[capacity, priority]))
    rows = [
        {"capacity": capacity, "order": order, "answer": answer_of(trace.prediction)}
        | {"kept": trace.kept, "milliseconds": 1e3 * own_seconds}
        for capacity, order, trace, own_seconds in entries
    ]
    page.table(rows, f"{name}-capacity", f"The answer at each capacity, and the median of {REPEATS} forward passes")


def _seconds(
    predictor: Predictor, prepared: Sample, title: str, settings: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], float]:
    """The median time of a forward pass at each capacity, measured in turn, so that none has a quieter machine."""
    trace_sample(predictor, prepared, title)  # the first pass also allocates memory and starts threads
    rounds = [[trace_sample(predictor, prepared, title, *each).seconds for each in settings] for _ in range(REPEATS)]
    return {each: statistics.median(times) for each, times in zip(settings, zip(*rounds, strict=True), strict=True)}


def _add_boxes(page: Page, trace: ImageTrace, name: str) -> None:
    found = experts_of_boxes(trace, MIN_SCORE)
    if not found:
        page.text(f"No object has a score of at least {MIN_SCORE:g}.")
        return
    if not trace.layers:
        return
    page.figure(box_figure(trace, found), f"{name}-boxes", "The found boxes, and the experts of the patches in them.")
    rows = [
        {"box": number, "class": each.box.name, "score": each.box.score, "patches": each.patches}
        | {"layer": layer, "expert": expert, "choices": count}
        for number, each in enumerate(found, start=1)
        for layer, counts in each.experts.items()
        for expert, count in enumerate(counts.tolist())
        if count
    ]
    if rows:
        page.table(rows, f"{name}-boxes", "The experts of each found box")


def _add_parts(page: Page, predictor: Predictor, prepared: Sample, trace: ImageTrace, name: str) -> None:
    assert isinstance(predictor.task, Labels)
    grid = trace.layers[0].grid if trace.layers else None if trace.rollout is None else tuple(trace.rollout.shape)
    if grid is None:
        page.text("The patches of this network are not known, so neither are their parts in the answer.")
        return
    parts = parts_of_answer(predictor, prepared, (grid[0], grid[1]))
    answer = predictor.task.classes[parts.target]
    if parts.patches is None:
        page.text(
            "The part of each patch in the answer needs captum, which is not installed: pip install 'vismoe[explain]'."
        )
    if parts.patches is None and not parts.experts:
        return
    page.figure(
        part_figures(trace, parts.patches, parts.experts, answer),
        f"{name}-parts",
        f"What the answer {answer} rests on: how much its log-odds, {parts.log_odds:.2f}, fall if one patch is covered "
        "by the mean colour, or if the outputs of one expert are 0. Negative parts speak against the answer.",
    )
    rows: list[dict[str, Any]] = []
    if parts.patches is not None:
        rows += [
            {"part": "patch", "layer": "", "row": row, "column": column, "expert": None, "fall": value}
            for row, values in enumerate(parts.patches.tolist())
            for column, value in enumerate(values)
        ]
    rows += [
        {"part": "expert", "layer": layer, "row": None, "column": None, "expert": expert, "fall": value}
        for layer, values in parts.experts.items()
        for expert, value in enumerate(values.tolist())
    ]
    page.save_table(rows, f"{name}-parts")
