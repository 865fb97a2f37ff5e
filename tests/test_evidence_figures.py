"""pytest tests/test_evidence_figures.py: what the page says follows from the rows, on rows with known answers."""

import math

import numpy as np
import pytest
from evidence.families import DENSE_1, GROWN, HASH_32, SHARED, SPARSE_32
from evidence.figures import FAMILIAR, SHARES, UNFAMILIAR, by_kind, decisive_of, findings, losses_in, multipliers
from evidence.matching import ARMS, RECALLS
from evidence.plot import draw
from evidence.report import (
    PAGE,
    between,
    category_table,
    control_table,
    decisive_table,
    kind_table,
    main,
    matching_table,
    multiplier_table,
    network_table,
    pilot_table,
    rewritten,
    shared_table,
    single_table,
    task_table,
    whole_table,
)
from evidence.runs import SEEDS, WIDTHS, key_of, name_of
from evidence.tasks import DECISIVE, KINDS, VIEWS, kinds

pytestmark = pytest.mark.benchmarks

SPARSE_COST = 1.1


def law(cost):
    return 3.0 * cost**-0.3


def rows(times, fixed=1.5, early=None):
    """The decisive rows of a world in which a sparse trunk is worth a dense one of `times` its own cost, one of fixed
    routing `fixed`; after a quarter of the steps `early` times. On familiar views losses are half as large."""
    found = []
    networks = [(DENSE_1, 1.0, 1.0), (GROWN[0], 2.0, 2.0), (GROWN[4], 4.0, 4.0)]
    networks += [(SPARSE_32, SPARSE_COST, times * SPARSE_COST), (HASH_32, SPARSE_COST, fixed * SPARSE_COST)]
    for width in WIDTHS:
        for seed in SEEDS:
            for family, cost, worth in networks:
                row = {
                    "stage": "decisive",
                    "task": DECISIVE,
                    "family": family.name,
                    "width": str(width),
                    "rate": "0.002",
                    "seed": str(seed),
                    "trunk": str(round(cost * width * 1e6)),
                    "parameters": "1000000",
                    "cpu_seconds": "600",
                    "neighbours": "0.5",
                    "probe": "0.6",
                }
                for share in (25, 50, 75, 100):
                    at = worth * (early or times) / times if share == 25 and family == SPARSE_32 else worth
                    loss = law(at) * (1 + 0.001 * seed) * 100 / share
                    row |= {f"val_loss_{share}": f"{loss:.5f}", f"top1_{share}": f"{1 / (1 + loss):.5f}"}
                    row |= {f"top5_{share}": "0.9", f"familiar_val_loss_{share}": f"{loss / 2:.5f}"}
                    row |= {f"familiar_top1_{share}": f"{1 / (1 + loss / 2):.5f}"}
                found.append(row)
    return found


def speed():
    """As long as multiplications say, but that the sparse trunk takes half as long again."""
    networks = {DENSE_1: 1.0, GROWN[0]: 2.0, GROWN[4]: 4.0, SPARSE_32: 1.5 * SPARSE_COST, HASH_32: 1.5 * SPARSE_COST}
    return [
        {"family": family.name, "width": str(width)}
        | dict.fromkeys(("step_cpu_ms", "latency_ms", "optimized_ms"), str(cost))
        for width in WIDTHS
        for family, cost in networks.items()
    ]


def losses(row, views):
    """Each picture's, with a part that all networks share."""
    generator = np.random.default_rng(0)
    return views.loss(row) + generator.normal(0, 0.1, 500)


@pytest.mark.parametrize(
    ("times", "fixed", "early", "said"),
    [
        (2.0, 1.5, None, "pays"),
        (1.1, 1.0, None, "does not pay"),
        (2.0, 2.0, None, "memory, not routing"),
        (1.5, 1.2, None, "undecided"),  # no better than dense at equal processor time
        (2.0, 1.5, 3.0, "pays; sparse learns faster too, and the multiplier falls with training"),
    ],
)
def test_the_world_is_told_as_it_is(times, fixed, early, said):
    """On either kind of views, here with the same law."""
    for views in (UNFAMILIAR, FAMILIAR):
        found = findings(rows(times, fixed, early), speed(), losses, views)
        assert found.verdict == said
        for width in WIDTHS:
            assert found.seeds[width][100].value == pytest.approx(times, rel=1e-2)
            assert found.pictures[width].value == pytest.approx(times, rel=2e-2)
            assert found.processor[width].value == pytest.approx(
                max(1.0, times * SPARSE_COST) / 1.5 / SPARSE_COST, rel=0.02
            )


def test_outside_the_ladder_a_multiplier_is_a_bound():
    """Better than all rungs: at least the largest one's cost; worse than all: at most the smallest one's."""
    for times, bound, value in ((5.0, "≥", 4 / SPARSE_COST), (0.5, "≤", 1 / SPARSE_COST)):
        found = multipliers(decisive_of(rows(times), WIDTHS[0]), UNFAMILIAR)
        assert all(own == bound and multiplier == pytest.approx(value, rel=1e-3) for multiplier, own in found)
        shown = between(findings(rows(times), speed(), losses).seeds[WIDTHS[0]][100])
        assert shown.startswith(f"{bound} {value:.2f} (")


def test_a_fall_from_beyond_the_ladder_to_beyond_it_cannot_be_told():
    """Nor one to "at least": what is divided by at least a figure is at most."""
    for early, bound in ((9.0, "≈"), (2.0, "≤")):
        found = findings(rows(5.0, early=early), speed(), losses)
        assert all(interval.bound == bound for interval in found.faster.values())
        assert "falls" not in found.verdict


def test_a_missing_run_is_no_finding():
    with pytest.raises(KeyError):
        findings(rows(2.0)[1:], speed(), losses)


def test_tables_and_picture(tmp_path):
    """Every network and share has its place; the picture is one."""
    table = rows(2.0)
    found = [findings(table, speed(), losses, views) for views in (UNFAMILIAR, FAMILIAR)]
    assert len(multiplier_table(found).splitlines()) == 2 + 2 * len(WIDTHS)
    assert all(f"at {share} %" in multiplier_table(found) for share in SHARES)
    controls = control_table(found, table).splitlines()[2:]
    assert len(controls) == 2 * len(WIDTHS)
    for worth in (1.5, 2):  # fixed routing, learned
        assert f"| {1.001 * (law(worth * SPARSE_COST) - law(1)):.3f} (" in controls[0]
        assert f"| {1.001 * (law(worth * SPARSE_COST) - law(1)) / 2:.3f} (" in controls[-1]
    for each in (decisive_table, network_table):
        assert each(table).count(SPARSE_32.name) == 2 * len(WIDTHS)  # fixed routing has its name in it
    expected = (
        f"| 64 | {DENSE_1.name} | 12.012 | 6.006 | 3.003 ± 0.007 | 0.250 | 6.006 | 3.003 | 1.502 ± 0.004 | 0.400 |"
    )
    assert decisive_table(table).splitlines()[2] == expected
    pilots = [dict(row, stage="pilot", rate=rate) for row in table[:1] for rate in ("0.001", "0.002")]
    pilots[1]["val_loss_100"] = "1.25"
    assert pilot_table(pilots).splitlines()[2] == f"| 64 | {DENSE_1.name} | 3.000 | **1.250** |"
    whole = dict(table[0], stage="length", val_loss_75="3.5", val_loss_100=f"{math.log(4000) - 5:.5f}")
    assert whole_table([whole]).endswith("| 3.500 | 3.294 | 4.1 % |")
    one = dict(table[0], stage="single", steps="2000", top5_100="0.75", familiar_val_loss_100="")
    assert single_table([one]).splitlines()[2].endswith("| 3.000 | 0.250 | 0.750 |  | 0.400 |")
    draw([decisive_of(table, width) for width in WIDTHS], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_single_runs_are_compared_with_their_own_ladder():
    """The multiplier of each task is that of its own rows; differences are paired over seeds; what is not whole is
    left out."""
    decisive = [dict(row, steps="2000") for row in rows(2.0)]
    other = [dict(row, steps="3000") for row in rows(3.0) if (row["width"], row["seed"]) == ("64", "0")]
    fewer = [dict(row, stage="single", task="which-picture-1000") for row in other]
    some = [dict(row, stage="single", task="which-picture-all") for row in other if row["family"] != DENSE_1.name]
    longer = [dict(row, stage="longer") for row in other]
    assert task_table(decisive + fewer + some + longer).splitlines()[2:] == [
        "| 4000 | 2000 | 2.00 | 2.00 |",
        "| 1000 | 3000 | 3.00 | 3.00 |",
        "| 4000 | 3000 | 3.00 | 3.00 |",
    ]
    pairs = [
        {"stage": "single", "task": "openclipart-22", "family": family.name, "seed": str(seed), "width": "64"}
        | {"top1_100": str(top1 + seed / 10), "val_loss_100": str(1 - seed / 10)}
        for seed in SEEDS
        for family, top1 in ((SPARSE_32, 0.55), (DENSE_1, 0.5))
    ]
    assert category_table(pairs).splitlines()[2:] == [
        "| openclipart-22 | 22 | 0.0500 (0.0500 to 0.0500) | 0.000 (0.000 to 0.000) |"
    ]
    assert len(category_table(pairs[1:]).splitlines()) == 2
    sparse = [row for row in rows(3.0) if (row["family"], row["width"]) == (SPARSE_32.name, "64")]
    shared = [dict(row, stage="single", family=SHARED.name) for row in sparse]
    unfamiliar, _ = shared_table(decisive + shared[::-1]).splitlines()[2:]
    gains = [1.001 * (law(3 * SPARSE_COST) - law(worth)) for worth in (1, 2 * SPARSE_COST)]
    assert unfamiliar.startswith("| unfamiliar | 3.00 (3.00 to 3.00) | ")
    assert all(f"| {gain:.3f} (" in unfamiliar for gain in gains)
    assert len(shared_table(decisive + shared[1:]).splitlines()) == 2
    assert task_table(decisive + pairs) == task_table(decisive)


def test_views_are_told_apart(tmp_path):
    """Each kind's figures are of its own views, a picture's loss is the mean of its views, each part has its own."""
    row, pictures = rows(2.0)[0], 40
    kind = kinds(pictures)
    assert all(kind[index] != kind[index + 1] for index in range(0, len(kind), VIEWS))
    number = np.array([KINDS.index(name) for name in kind])
    views = {"test_loss": number.astype(np.float16), "test_right": number > 1, "familiar_loss": 2.0 * number}
    np.savez(tmp_path / f"{name_of(key_of(row))}.npz", **views)
    assert by_kind([row, row], lambda row: views) == {
        name: (float(place), float(place > 1)) for place, name in enumerate(KINDS)
    }
    of_pictures = losses_in(tmp_path)
    assert np.array_equal(of_pictures(row, UNFAMILIAR), number.reshape(-1, VIEWS).mean(1))
    assert np.array_equal(of_pictures(row, FAMILIAR), 2 * number.reshape(-1, VIEWS).mean(1))
    better = views | {"test_loss": 0.75 * number}
    shown = kind_table(rows(2.0), lambda row: better if row["family"] == SPARSE_32.name else views).splitlines()
    assert shown[2].endswith("| 0.000 (0.00) | 0.000 (1.00) | 1.000 (2.00) | 1.000 (3.00) |")
    gains = [f"{-0.25 * place:.2f} ({-0.25 * place:.2f} to {-0.25 * place:.2f})" for place in range(1, len(KINDS))]
    assert shown[-1].endswith(" | ".join(["", "0.00 (0.00 to 0.00)", *gains]) + " |")


def test_the_second_arm_is_paired_over_seeds():
    """Each arm's difference from dense is that of the same seeds, whatever seeds have in common."""
    table = [
        {"stage": "decisive", "arm": arm, "rate": "0.0003", "seed": str(seed), "trained": "9000000"}
        | dict.fromkeys(RECALLS, str(0.3 + 0.1 * seed + 0.02 * place))
        for place, arm in enumerate(ARMS)
        for seed in SEEDS
    ]
    frozen, dense, full, low_rank = matching_table(table).splitlines()[2:]
    assert dense.endswith("|  |  |")
    assert frozen.endswith("| -0.0200 (-0.0200 to -0.0200) |  |")
    assert full.endswith("| 0.0200 (0.0200 to 0.0200) | helps here |")
    assert low_rank.endswith("| 0.0400 (0.0400 to 0.0400) | helps here |")
    table[-1] |= dict.fromkeys(RECALLS, "0.1")
    assert matching_table(table).endswith("| nothing is shown |")
    table[-len(SEEDS) :] = [row | {"arm": list(ARMS)[-1]} for row in table[: len(SEEDS)]]
    assert matching_table(table).endswith("| -0.0200 (-0.0200 to -0.0200) | hurts |")


def test_the_page_is_what_the_tables_say(tmp_path):
    """`evidence.report` would change nothing of docs/evidence.md."""
    page = tmp_path / "evidence.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    main(page, tmp_path / "evidence.png")
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_blocks_are_put_in_their_places():
    page = "a\n<!-- one -->\nold\n<!-- end of one -->\nb\n"
    assert rewritten(page, {"one": "new"}) == page.replace("old", "new")
    with pytest.raises(ValueError, match="two"):
        rewritten(page, {"two": "x"})


def test_a_row_finds_its_losses():
    assert name_of(key_of(rows(2.0)[0])) == f"decisive-{DECISIVE}-dense1×-64-0.002-0"
