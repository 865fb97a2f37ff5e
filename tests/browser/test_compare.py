"""pytest -m browser tests/browser/test_compare.py: two models side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vismoe import Predictor, load
from vismoe.vit import cost

from .conftest import MARKUP, Service


def measured(page: Any) -> None:
    page.wait_for_function("() => document.querySelector('#compare-verdict').textContent !== ''")


def test_both_answers_are_shown_with_their_cost(page: Any, service: Service, digit: Path) -> None:
    page.click("#tab-compare")
    page.set_input_files("#file", digit)
    measured(page)
    first = []
    for number, run in enumerate((service.sparse, service.dense)):
        card = page.locator("#compare-models .card").nth(number)
        network = load(run / "model")
        (expected,) = Predictor(network).predict([digit])
        assert card.locator(".label").all_text_contents() == [name for name, _ in expected.classes]
        first.append(expected.classes[0][0])
        counted = cost(network, (1, 8, 8))
        shown = card.locator(".facts").inner_text()
        for amount in (counted.macs, counted.parameters, counted.active_parameters):
            assert any(f"{amount / size:.3g}"[:3] in shown for size in (1e3, 1e6))
        assert "Request, median of 9" in shown
    verdict = page.locator("#compare-verdict").text_content()
    same, other = f"Both answer {first[0]}.", f"They differ: {first[0]}, and {first[1]}."
    assert verdict.startswith(same if first[0] == first[1] else other)


def test_names_of_classes_are_text(page: Any, service: Service, photo: Path) -> None:
    answer = {"predictions": [[{"label": MARKUP, "probability": 1.0}]], "milliseconds": 1.0}
    page.route("**/v1/predict", lambda route: route.fulfill(json=answer))
    page.click("#tab-compare")
    page.set_input_files("#file", photo)
    measured(page)
    assert page.locator("#compare-models .label").all_text_contents() == [MARKUP, MARKUP]
    assert page.locator("#compare-models img").count() == 0


def test_one_model_alone_is_told_how_to_get_a_second(
    open_page: Callable[..., Any], serve: Callable[..., str], service: Service
) -> None:
    page = open_page(serve(service.dense))
    page.click("#tab-compare")
    assert "--compare MODEL2" in page.locator("#compare-note").inner_text()


def test_only_the_shown_view_asks(page: Any, digit: Path) -> None:
    """Requests of the other view would take time from those that are measured."""
    asked: list[str] = []
    page.on("request", lambda request: request.method == "POST" and asked.append(request.url.rsplit("/", 1)[1]))
    page.click("#tab-compare")
    page.set_input_files("#file", digit)
    measured(page)
    assert set(asked) == {"predict"}
    page.click("#tab-try")
    page.wait_for_selector("#try-result:not([hidden]):not(.waiting)")
    assert set(asked) == {"predict", "explain"}
