"""The study's page: its figures from the tables, between marks in docs/evidence.md, and its image.

PYTHONPATH=benchmarks python -m evidence.report      # rewrites docs/evidence.md's figures and docs/evidence.png
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import tyro
from table import Table

from .enough import last_part
from .families import DENSE_1, HASH_32, SHARED, SPARSE_32
from .figures import (
    FAMILIAR,
    SHARES,
    UNFAMILIAR,
    Findings,
    Row,
    arrays_in,
    by_kind,
    decisive_of,
    decisive_rows,
    difference,
    differences_by_kind,
    findings,
    losses_in,
    multiplier_of,
    multipliers,
    rungs,
)
from .matching import ARMS, RECALLS
from .matching import KEY as MATCHING_KEY
from .matching import TABLE as MATCHING
from .matching import queue as matching_queue
from .measures import Interval, multiplier_over_seeds, over_seeds
from .plot import draw
from .runs import CATEGORIES, KEY, SEEDS, WIDTHS, queue, too_short
from .speed import SPEED
from .study import QUARTERS, TABLE
from .tasks import DECISIVE, KINDS, TASKS
from .work import missing

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "evidence.md", DOCS / "evidence.png"
BLOCKS = ("verdict", "multipliers", "controls", "decisive runs", "kinds of views", "networks")
BLOCKS += ("other tasks", "categories", "shared half", "single runs", "second arm", "pilots", "whole runs")
NONE = "Not complete yet."


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def between(interval: Interval, digits: int = 2) -> str:
    """An estimate and its interval."""
    value = f"{interval.bound} {interval.value:.{digits}f}".strip()
    return f"{value} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def multiplier_table(each: Sequence[Findings]) -> str:
    shares = [f"at {share} % of the steps" for share in SHARES]
    lines = [
        [found.views.name, width, *(between(found.seeds[width][share]) for share in SHARES)]
        + [between(figure[width]) for figure in (found.faster, found.pictures)]
        + [between(figure[width]) for figure in (found.processor, found.latency, found.optimized)]
        for found in each
        for width in WIDTHS
    ]
    times = ["processor time", "latency", "latency, optimized"]
    return table(["views", "width", *shares, "25 % ÷ 100 %", "over images", *times], lines)


def control_table(each: Sequence[Findings], rows: Sequence[Row]) -> str:
    """Learned and fixed routing against each other and against dense trunks: at equal MACs, and by the
    ladder at equal processor time."""
    lines = []
    for found in each:
        for width in WIDTHS:
            own = decisive_rows(rows, width)
            losses = [difference(own, found.views.loss, family) for family in (HASH_32, SPARSE_32)]
            top1 = [difference(own, found.views.top1), found.gain[width]]
            figures = [between(loss, 3) for loss in (found.over_fixed[width], *losses)]
            lines.append([found.views.name, width, *figures, *(between(gain, 4) for gain in top1)])
    head = ["loss, fixed − learned routing", "loss, fixed − dense 1×", "loss, sparse − dense 1×"]
    head += ["top-1, sparse − dense 1×", "top-1, sparse − dense at equal processor time"]
    return table(["views", "width", *head], lines)


def decisive_networks(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """Width and rows, one a seed, of each decisive network."""
    found = []
    for width in WIDTHS:
        decisive = decisive_of(rows, width)
        found += [(width, same) for same in (*decisive.rungs, decisive.sparse, decisive.hashed)]
    return found


def decisive_table(rows: Sequence[Row]) -> str:
    """Every decisive network: means over seeds, the loss with the half of its interval."""
    lines = []
    for width, same in decisive_networks(rows):
        cells = [width, same[0]["family"]]
        for views in (UNFAMILIAR, FAMILIAR):
            cells += [f"{mean(views.loss(row, share) for row in same):.3f}" for share in SHARES[:-1]]
            end = over_seeds([views.loss(row) for row in same])
            cells += [f"{end.value:.3f} ± {end.high - end.value:.3f}", f"{mean(map(views.top1, same)):.3f}"]
        lines.append(cells)
    columns = [*(f"{share} %" for share in SHARES), "top-1"]
    head = [f"{views.name}: {name}" for views in (UNFAMILIAR, FAMILIAR) for name in columns]
    return table(["width", "network", *head], lines)


def kind_table(rows: Sequence[Row], arrays: Callable[[Row], Mapping[str, np.ndarray]]) -> str:
    """Top-1 of every decisive network on each kind of unfamiliar views, and the loss; what experts do to the loss."""
    lines = []
    for width, same in decisive_networks(rows):
        found = by_kind(same, arrays)
        lines.append([width, same[0]["family"], *(f"{right:.3f} ({loss:.2f})" for loss, right in found.values())])
    for width in WIDTHS:
        found = differences_by_kind(decisive_of(rows, width), arrays)
        lines.append([width, "loss, sparse − dense 1×", *(between(each) for each in found.values())])
    return table(["width", "network", *KINDS], lines)


def network_table(rows: Sequence[Row]) -> str:
    """What every decisive network is and takes, and what it is worth elsewhere: means over seeds."""
    lines = []
    for width, same in decisive_networks(rows):
        first = same[0]
        further = [f"{mean(float(row[name]) for row in same):.3f}" for name in ("top5_100", "neighbours", "probe")]
        minutes = mean(float(row["cpu_seconds"]) for row in same) / 60
        lines.append([width, first["family"], first["rate"], *_size(first), *further, f"{minutes:.0f}"])
    head = ["width", "network", "rate", "MACs", "parameters", "top-5", "emoji: neighbours", "linear"]
    return table([*head, "CPU minutes"], lines)


def single_table(rows: Sequence[Row]) -> str:
    """Every single run, those of more steps last; before them, to compare with, the decisive ones of the same seed."""
    head = ["task", "steps", "network", "seed", "rate", "MACs", "parameters", "loss", "top-1", "top-5"]
    head += ["familiar: loss", "top-1"]
    found = [row for stage in ("single", "longer") for row in rows if row["stage"] == stage]
    return table(head, [_line(row, "task", "steps", "family", "seed", "rate") for row in _first(rows) + found])


def task_table(rows: Sequence[Row]) -> str:
    """The multiplier of one seed on fewer and more images, and after more steps, as far as ladders are whole."""
    first, lines = _first(rows), []
    others = [("single", task) for task in TASKS if task not in (DECISIVE, *CATEGORIES)] + [("longer", DECISIVE)]
    for those in (first, *([row for row in rows if (row["stage"], row["task"]) == other] for other in others)):
        ladder, own = rungs(those), [row for row in those if row["family"] == SPARSE_32.name]
        if own and len(ladder) == len(rungs(first)):
            times = [multiplier_of(ladder, own[0], views) for views in (UNFAMILIAR, FAMILIAR)]
            told = [f"{bound} {value:.2f}".strip() for value, bound in times]
            lines.append([TASKS[own[0]["task"]].classes, own[0]["steps"], *told])
    return table(["images", "steps", *(f"multiplier, {views.name} views" for views in (UNFAMILIAR, FAMILIAR))], lines)


def category_table(rows: Sequence[Row]) -> str:
    """Sparse − dense where nothing is short of capacity, as far as all seeds are there."""
    lines = []
    for task in CATEGORIES:
        those = [row for row in rows if (row["stage"], row["task"]) == ("single", task)]
        if len({(row["family"], row["seed"]) for row in those}) == 2 * len(SEEDS):
            top1, loss = (difference(those, figure) for figure in (UNFAMILIAR.top1, UNFAMILIAR.loss))
            lines.append([task, TASKS[task].classes, between(top1, 4), between(loss, 3)])
    return table(["set", "classes", "top-1, sparse − dense", "loss, sparse − dense"], lines)


def shared_table(rows: Sequence[Row]) -> str:
    """Experts beside a shared half against the decisive runs of their width, as far as all seeds are there."""
    own = [row for row in rows if (row["stage"], row["family"]) == ("single", SHARED.name)]
    own.sort(key=lambda row: int(row["seed"]))
    lines = []
    for views in (UNFAMILIAR, FAMILIAR) if len(own) == len(SEEDS) else ():
        decisive, those = decisive_of(rows, WIDTHS[0]), decisive_rows(rows, WIDTHS[0]) + own
        cells = [between(multiplier_over_seeds(multipliers(replace(decisive, sparse=own), views)))]
        cells += [between(difference(those, views.loss, SHARED, than), 3) for than in (DENSE_1, SPARSE_32)]
        cells += [between(difference(those, views.top1, SHARED, than), 4) for than in (DENSE_1, SPARSE_32)]
        lines.append([views.name, *cells])
    head = [f"{figure} − {than.name}" for figure in ("loss", "top-1") for than in (DENSE_1, SPARSE_32)]
    return table(["views", "multiplier", *head], lines)


def _first(rows: Sequence[Row]) -> list[Row]:
    """The decisive runs of the first seed and the smaller width."""
    return [row for row in decisive_rows(rows, WIDTHS[0]) if row["seed"] == str(SEEDS[0])]


def pilot_table(rows: Sequence[Row]) -> str:
    """Loss on further views of the training family after a quarter of the steps, by rate."""
    pilots = [row for row in rows if row["stage"] == "pilot"]
    rates = sorted({row["rate"] for row in pilots}, key=float)
    loss = {(row["width"], row["family"], row["rate"]): float(row["val_loss_100"]) for row in pilots}
    lines = []
    for width, family in dict.fromkeys((row["width"], row["family"]) for row in pilots):
        own = {rate: loss[width, family, rate] for rate in rates if (width, family, rate) in loss}
        cells = [f"{own[rate]:.3f}" if rate in own else "" for rate in rates]
        best = min(own, key=own.__getitem__)
        cells[rates.index(best)] = f"**{cells[rates.index(best)]}**"
        lines.append([width, family, *cells])
    return table(["width", "network", *rates], lines)


def whole_table(rows: Sequence[Row]) -> str:
    """Loss on views of the training family over whole runs, and the last quarter's part of its fall."""
    lines = []
    for row in (row for row in rows if row["stage"] == "length"):
        losses = [float(row[f"val_loss_{share}"]) for share in QUARTERS]
        shown = [f"{loss:.3f}" for loss in losses]
        lines.append([row["width"], row["family"], row["rate"], *shown, f"{100 * last_part(row):.1f} %"])
    head = [
        "width",
        "network",
        "rate",
        *(f"at {share} %" for share in QUARTERS),
        "fraction of the fall in the last quarter",
    ]
    return table(head, lines)


def matching_table(rows: Sequence[Row]) -> str:
    """The second arm's test: each arm's recalls over seeds, and how its mean differs from the dense one's."""
    found = {arm: {row["seed"]: row for row in rows if (row["stage"], row["arm"]) == ("decisive", arm)} for arm in ARMS}
    dense, lines = found["dense"], []
    for arm, by_seed in found.items():
        shown = [over_seeds([float(row[name]) for row in by_seed.values()]) for name in RECALLS]
        first, cells = next(iter(by_seed.values())), [between(recall, 4) for recall in shown]
        if arm == "dense":
            cells += ["", ""]
        else:
            gain = over_seeds([_mean(row) - _mean(dense[seed]) for seed, row in by_seed.items()])
            cells += [between(gain, 4), _said(gain) if ARMS[arm] else ""]
        lines.append([arm, first["rate"], f"{int(first['trained']) / 1e6:.1f} M", *cells])
    recalls = [name.replace("_", " ").replace("picture", "image") for name in RECALLS]
    return table(["arm", "rate", "trained parameters", *recalls, "mean of both − dense", "by the rules"], lines)


def _said(gain: Interval) -> str:
    """What RULES.md makes of the difference of an arm with experts from the dense one."""
    return "helps here" if gain.low > 0 else "hurts" if gain.high < 0 else "nothing is shown"


def _mean(row: Row) -> float:
    return mean(float(row[name]) for name in RECALLS)


def _line(row: Row, *columns: str) -> list[str]:
    figures = ("val_loss", "top1", "top5", "familiar_val_loss", "familiar_top1")
    shown = [row[f"{name}_100"] for name in figures]
    return [row[name] for name in columns] + _size(row) + [f"{float(value):.3f}" if value else "" for value in shown]


def _size(row: Row) -> list[str]:
    """MACs of the trunk, and parameters."""
    return [f"{int(row['trunk']) / 1e6:.1f} M", f"{int(row['parameters']) / 1e6:.2f} M"]


def rewritten(page: str, blocks: dict[str, str]) -> str:
    """The page with its blocks anew.

    **Raises:** ValueError where a block has no place in it.
    """
    for name, text in blocks.items():
        first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if page.count(first) != 1 or page.count(last) != 1:
            raise ValueError(f"the page needs {first.strip()} and {last}, once each")
        before, rest = page.split(first)
        page = f"{before}{first}{text}\n{last}{rest.split(last)[1]}"
    return page


def main(page: Path = PAGE, picture: Path = PICTURE) -> None:
    """Rewrite the page's tables and draw its image, from the rows that are there.

    Args:
        page: The page, whose tables are between marks.
        picture: PNG to write.
    """
    rows, blocks = TABLE.rows(), dict.fromkeys(BLOCKS, NONE)
    left, against = missing(queue(rows, "decisive"), TABLE, KEY), too_short(rows)
    blocks["verdict"] = f"Verdict: none yet, {len(left)} runs of those that are known are missing."
    speed = Table(SPEED).rows()
    if against:
        blocks["verdict"] = f"Verdict: none yet, whole runs are too short: {'; '.join(against)}."
    elif not left and not speed:
        blocks["verdict"] = "Verdict: none yet, processor time and latency have not been measured (`evidence.speed`)."
    elif not left:
        views = TABLE.path.with_suffix("")
        found = [findings(rows, speed, losses_in(views), kind) for kind in (UNFAMILIAR, FAMILIAR)]
        besides = f"(On familiar views, which do not decide, the same rules would say: {found[1].verdict}.)"
        blocks["verdict"] = f"Verdict: {found[0].verdict}\n\n{besides}"
        blocks["multipliers"] = f"![Loss against MACs]({picture.name})\n\n{multiplier_table(found)}"
        blocks |= {"controls": control_table(found, rows), "decisive runs": decisive_table(rows)}
        blocks |= {"kinds of views": kind_table(rows, arrays_in(views)), "networks": network_table(rows)}
    stages = {row["stage"] for row in rows}
    if "pilot" in stages:
        blocks["pilots"] = pilot_table(rows)
    if "length" in stages:
        blocks["whole runs"] = whole_table(rows)
    if "single" in stages:
        blocks |= {"other tasks": task_table(rows), "categories": category_table(rows)}
        blocks["shared half"] = shared_table(rows)
        blocks["single runs"] = single_table(rows)
    matched = MATCHING.rows()
    if matched and not missing(matching_queue(matched), MATCHING, MATCHING_KEY):
        blocks["second arm"] = matching_table(matched)
    text = rewritten(page.read_text(encoding="utf-8"), blocks)
    if blocks["multipliers"] != NONE:
        draw([decisive_of(rows, width) for width in WIDTHS], picture)
    page.write_text(text, encoding="utf-8")
    print(f"{page} says what the tables say")


if __name__ == "__main__":
    tyro.cli(main)
