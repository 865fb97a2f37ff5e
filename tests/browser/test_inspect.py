"""pytest -m browser tests/browser/test_inspect.py: experts on the run's images, and the run itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import MARKUP, STEPS, Service


def short(number: float, digits: int) -> str:
    return f"{float(f'{number:.{digits}g}'):g}"


def ready(page: Any) -> None:
    page.click("#tab-inspect")
    page.wait_for_selector("#inspect-experts .gallery", timeout=60_000)


def test_experts_are_shown_with_load_classes_and_gallery(page: Any, service: Service) -> None:
    answers: list[dict[str, Any]] = []
    page.on(
        "response",
        lambda response: "v1/experts" in response.url and response.status == 200 and answers.append(response.json()),
    )
    ready(page)
    (answer,) = answers
    for number, layer in enumerate(answer["layers"]):
        page.select_option("#inspect-layer", str(number))
        experts = len(layer["load"])
        shares = page.locator("#inspect-experts .bars .number").all_text_contents()
        total = sum(layer["load"])
        for expert, (shown, load) in enumerate(zip(shares, layer["load"], strict=True)):
            if expert in layer["dead"]:
                assert shown == "dead"
            else:
                assert float(shown.split()[0]) == pytest.approx(100 * load / total, abs=0.06)
        names = page.locator("section[aria-label=Classes] thead th").all_text_contents()[1:]
        assert names == answer["classes"] == [str(digit) for digit in range(10)]
        table = page.locator("section[aria-label=Classes] tbody tr")
        assert table.count() == experts
        cells = [[int(cell) for cell in row.locator("td").all_text_contents()] for row in table.all()]
        assert all(abs(sum(column) - 100) <= experts / 2 for column in zip(*cells, strict=True))
        if layer["together"] is not None:
            counts = np.asarray(layer["together"], dtype=float)
            rows = page.locator("section[aria-label='Across layers'] tbody tr").all()
            cells = [[int(cell) for cell in row.locator("td").all_text_contents()] for row in rows]
            share = 100 * counts / counts.sum(1, keepdims=True).clip(1)  # as the figure of the report
            np.testing.assert_allclose(cells, share, atol=0.5 + 1e-6)
        tracks = page.locator("#inspect-experts .bars .bar").evaluate_all(
            """(bars) => bars.map((bar) => [
                parseFloat(getComputedStyle(bar, "::after").width) / bar.getBoundingClientRect().width,
                parseFloat(getComputedStyle(bar, "::before").left) / bar.getBoundingClientRect().width,
            ])"""
        )
        whole = max(2 / experts, max(layer["load"]) / total)
        for (bar, mark), load in zip(tracks, layer["load"], strict=True):
            assert bar == pytest.approx(load / total / whole, abs=0.01)
            assert mark == pytest.approx(1 / experts / whole, abs=0.01)
        galleries = page.locator(".gallery .expert")
        assert galleries.count() == experts
        assert galleries.locator("img").count() == sum(len(images) for images in layer["gallery"])
        galleries.first.locator("img").first.scroll_into_view_if_needed()
        page.wait_for_function("() => document.querySelector('.gallery img').naturalWidth > 0")
    assert page.locator("section[aria-label='Class or position'] tbody tr").count() == len(answer["layers"])


def test_curves_and_report_of_a_run(page: Any, service: Service) -> None:
    page.click("#tab-inspect")
    page.wait_for_selector("svg.curves")
    lines = [json.loads(line) for line in (service.sparse / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    chart = page.locator("figure", has_text="Loss")
    points = chart.locator("polyline").first.get_attribute("points").split()
    assert len(points) == len(losses)
    assert f"loss {short(losses[-1]['loss'], 3)}" in chart.locator(".keys").inner_text()
    assert f"Finished after {STEPS} steps." in page.locator("#inspect-run").inner_text()
    page.click("summary")
    summary = json.loads((service.sparse / "summary.json").read_text())
    report = page.locator("details").inner_text()
    assert short(summary["top1"], 4) in report


def test_a_report_is_text_and_fits_a_phone(open_page: Callable[..., Any], service: Service) -> None:
    page = open_page(service.address, viewport={"width": 360, "height": 740})
    report = {"note": MARKUP, "classes": [{"class": f"a & b {number}", "images": 3} for number in range(9)]}
    report |= {"deep": {"deeper": {"numbers": [0.123456] * 40, "path": "x" * 200}}}

    def told(route: Any) -> None:
        route.fulfill(json=route.fetch().json() | {"report": report})

    page.route("**/v1/run*", told)
    page.click("#tab-inspect")
    page.click("summary")
    shown = page.locator("details")
    assert shown.locator("dd").first.text_content() == MARKUP
    assert shown.locator("img").count() == 0
    assert shown.locator("tbody tr").first.text_content() == "a & b 03"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_run_is_asked_for_again_often_until_it_is_finished_and_then_seldom(page: Any, service: Service) -> None:
    calls: list[int] = []

    def growing(route: Any) -> None:
        """The service's answer, as it would be while the run goes on; finished in the third, resumed in the fourth."""
        calls.append(1)
        answer = route.fetch().json()
        if len(calls) != 3:
            steps = STEPS // 3 * len(calls)
            kept = [line for line in answer["metrics"] if line["step"] <= steps]
            answer |= {"metrics": kept, "finished": False, "report": None, "steps": 9 * STEPS}
        route.fulfill(json=answer)

    def told(words: str) -> None:
        page.wait_for_function("(words) => document.querySelector('#inspect-run').innerText.includes(words)", arg=words)

    page.clock.install()
    page.reload()
    page.route("**/v1/run*", growing)
    page.click("#tab-inspect")
    for steps in (STEPS // 3, 2 * (STEPS // 3)):
        told(f"Not finished: step {steps} of {9 * STEPS}.")
        page.clock.run_for(2100)
    told(f"Finished after {STEPS} steps.")
    page.clock.run_for(14_000)
    assert len(calls) == 3
    page.clock.run_for(1100)
    told(f"Not finished: step {STEPS} of")
    page.click("#tab-try")
    page.clock.run_for(20_000)
    assert len(calls) == 4  # not while the view is hidden


def test_accuracies_have_a_plot_of_their_own_without_those_that_are_always_right(page: Any, service: Service) -> None:
    lines = [{"step": step, "loss": 1.0, "accuracy": 0.5, "top1": 0.5, "top5": 1.0} for step in (1, 2)]
    answer = {"metrics": lines, "steps": 2, "finished": True, "report": None}
    answer["metrics"] = [line | {"calibration_error": 0.1, "map50": 0.2} for line in lines]
    few = {"count": 10}

    def models(route: Any) -> None:
        told = route.fetch().json()
        told["models"][0]["classes"] = [str(number) for number in range(few["count"])]
        route.fulfill(json=told)

    page.route("**/v1/run*", lambda route: route.fulfill(json=answer))
    page.route("**/v1/model", models)
    for count, shown in ((10, ["accuracy 0.5", "top1 0.5", "top5 1"]), (5, ["accuracy 0.5", "top1 0.5"])):
        few["count"] = count
        page.reload()
        page.click("#tab-inspect")
        page.wait_for_selector("svg.curves")
        plots = {
            figure.locator("figcaption").inner_text(): figure.locator(".keys li").all_inner_texts()
            for figure in page.locator("#inspect-run figure").all()
        }
        assert plots == {
            "Loss": ["loss 1"],
            "Accuracy": shown,
            "Calibration error": ["calibration_error 0.1"],
            "Average precision and recall": ["map50 0.2"],
        }


def test_a_model_folder_has_neither_data_nor_curves(
    open_page: Callable[..., Any], serve: Callable[..., str], service: Service, tmp_path: Path
) -> None:
    (tmp_path / "alone").symlink_to(service.sparse / "model")
    page = open_page(serve(tmp_path / "alone"))
    page.click("#tab-inspect")
    assert "is no run folder" in page.locator("#inspect-note").inner_text()
    assert page.locator("#inspect-run").inner_text() == ""
