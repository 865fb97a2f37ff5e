"""pytest -m browser tests/browser/test_try.py: an image, its answer, its experts, and another capacity, by a person's
steps. What the page shows is compared with the predictor's and the router's own figures."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vismoe import Predictor, load
from vismoe.explain import trace_image

from .conftest import Service

LAYER = 0


def choose(page: Any, path: Path) -> None:
    page.set_input_files("#file", path)
    answered(page)


def answered(page: Any) -> None:
    page.wait_for_selector("#try-result:not([hidden]):not(.waiting)")


def answers(page: Any, place: str = "#try-answer") -> list[str]:
    return page.locator(f"{place} .answer .label").all_text_contents()


def colour_at(page: Any, row: int, column: int, grid: tuple[int, int]) -> list[int]:
    """Red, green and blue of the canvas in the middle of a patch."""
    return page.evaluate(
        """([row, column, rows, columns]) => {
            const canvas = document.getElementById("overlay");
            const [x, y] = [((column + 0.5) * canvas.width) / columns, ((row + 0.5) * canvas.height) / rows];
            const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            pixel.drawImage(canvas, x, y, 1, 1, 0, 0, 1, 1);
            return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }""",
        [row, column, *grid],
    )


def own_trace(service: Service, path: Path, capacity: float | None = None) -> Any:
    with Image.open(path) as image:
        return trace_image(Predictor(load(service.sparse / "model")), image.convert("RGB"), capacity)


def test_the_answer_is_that_of_the_predictor(page: Any, service: Service, photo: Path) -> None:
    choose(page, photo)
    (expected,) = Predictor(load(service.sparse / "model")).predict([photo])
    assert answers(page) == [name for name, _ in expected.classes]
    shown = float(page.locator("#try-answer .number").first.text_content().split()[0])
    assert shown == pytest.approx(100 * expected.classes[0][1], abs=1)
    assert page.locator("#try-status").text_content().strip() == f"Answer: {expected.classes[0][0]}."
    page.wait_for_function("() => document.querySelector('#cost-status').textContent")
    assert page.locator("#cost-status").text_content().startswith("Forward pass, median of 9: ")


def hand_over(page: Any, event: str, *paths: Path) -> None:
    """Drops or pastes files."""
    types = {".png": "image/png", ".jpg": "image/jpeg", ".txt": "text/plain"}
    files = [[base64.b64encode(path.read_bytes()).decode(), path.name, types[path.suffix]] for path in paths]
    page.evaluate(
        """([event, files]) => {
            const transfer = new DataTransfer();
            for (const [content, name, type] of files) {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type }));
            }
            const [Kind, field] = event === "paste" ? [ClipboardEvent, "clipboardData"] : [DragEvent, "dataTransfer"];
            document.body.dispatchEvent(new Kind(event, { bubbles: true, cancelable: true, [field]: transfer }));
        }""",
        [event, files],
    )


def test_of_several_files_the_first_image_is_used(page: Any, digit: Path, photo: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("no image")
    page.wait_for_function("() => document.querySelectorAll('#try-model option').length")
    hand_over(page, "drop", note, digit, photo)
    answered(page)
    assert page.locator("#picked").text_content() == digit.name
    assert page.locator("#picked-note").inner_text().startswith("Only the first of 3 files is used.")
    hand_over(page, "drop", photo)
    page.wait_for_function("(name) => document.querySelector('#picked').innerText === name", arg=photo.name)
    assert "Only" not in page.locator("#picked-note").inner_text()
    hand_over(page, "drop", note)
    assert page.locator("#problem").inner_text().startswith("note.txt is not an image. ")
    page.evaluate("DataTransferItem.prototype.webkitGetAsEntry = () => ({ isDirectory: true, name: 'digit.png' })")
    hand_over(page, "drop", digit)
    assert page.locator("#problem").inner_text().startswith("digit.png is a folder. ")
    assert page.locator("#picked").text_content() == photo.name


def test_an_image_is_dropped_and_another_one_pasted(page: Any, digit: Path, photo: Path) -> None:
    page.wait_for_selector("#camera:not([hidden])")
    page.wait_for_function("() => document.querySelectorAll('#try-model option').length")
    hand_over(page, "drop", digit)
    answered(page)
    assert page.locator("#picked").text_content() == digit.name
    first = answers(page)
    hand_over(page, "paste", photo)
    assert page.locator("#picked").text_content() == photo.name
    page.wait_for_function(
        "(before) => document.querySelector('#try-answer').innerText !== before", arg="\n".join(first)
    )


def test_the_camera_takes_a_photo(page: Any) -> None:
    page.click("#camera")
    page.click("#camera-take")
    answered(page)
    assert page.locator("#picked").text_content() == "photo.jpg"
    assert len(answers(page)) == 5
    assert page.evaluate("document.getElementById('camera-video').srcObject") is None  # and the camera is off again


def test_a_patch_has_the_colour_and_the_number_of_its_expert(page: Any, service: Service, photo: Path) -> None:
    choose(page, photo)
    layer = own_trace(service, photo).layers[LAYER].to_json()
    rows, columns = layer["grid"]
    page.locator("#overlay").focus()
    for row in range(rows):
        for column in range(columns):
            page.keyboard.press("ArrowRight" if column or not row else "ArrowDown")
            (expert,) = layer["expert"][row][column]
            assert (
                page.locator("#patch")
                .text_content()
                .startswith(f"Row {row + 1}, column {column + 1}: expert {expert} ")
            )
        for _ in range(columns - 1):
            page.keyboard.press("ArrowLeft")
    experts = {expert for line in layer["expert"] for (expert,) in line}
    for expert in experts:
        count = sum(one == expert for line in layer["expert"] for (one,) in line)
        patches = f"{count} patch{'' if count == 1 else 'es'}"
        assert page.get_by_role("button", name=f"Expert {expert}: {patches}", exact=True).count() == 1


def test_a_tap_on_a_patch_shows_its_expert(open_page: Callable[..., Any], service: Service, photo: Path) -> None:
    page = open_page(service.address, viewport={"width": 360, "height": 740}, has_touch=True)
    choose(page, photo)
    layer = own_trace(service, photo).layers[LAYER].to_json()
    rows, columns = layer["grid"]
    page.locator("#overlay").scroll_into_view_if_needed()
    size = page.locator("#overlay").bounding_box()
    for row, column in ((0, 0), (rows - 1, 0), (rows - 1, columns - 1)):
        x = size["width"] * (column + 0.5) / columns
        page.locator("#overlay").tap(position={"x": x, "y": size["height"] * (row + 0.5) / rows})
        (expert,) = layer["expert"][row][column]
        words = f"Row {row + 1}, column {column + 1}: expert {expert} "
        assert page.locator("#patch").text_content().startswith(words)


def test_one_expert_is_shown_alone_and_then_all_again(page: Any, service: Service, photo: Path) -> None:
    choose(page, photo)
    layer = own_trace(service, photo).layers[LAYER].to_json()
    chosen = layer["expert"][0][0][0]
    others = [
        (row, column)
        for row, line in enumerate(layer["expert"])
        for column, (expert,) in enumerate(line)
        if expert != chosen
    ]
    grid = tuple(layer["grid"])
    before = [colour_at(page, *place, grid) for place in others]
    button = page.get_by_role("button", name=f"Expert {chosen}:")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    alone = [colour_at(page, *place, grid) for place in others]
    assert all(sum(dark) < sum(light) for dark, light in zip(alone, before, strict=True))
    page.get_by_role("button", name="All experts").click()
    assert [colour_at(page, *place, grid) for place in others] == before


def test_each_layer_has_its_own_picture(page: Any, service: Service, photo: Path) -> None:
    choose(page, photo)
    trace = own_trace(service, photo)
    names = page.locator("#try-layer option").all_text_contents()
    assert [name.split()[0] for name in names] == [layer.name for layer in trace.layers]
    pictures = set()
    for number in range(len(names)):
        page.select_option("#try-layer", str(number))
        pictures.add(page.evaluate("document.getElementById('overlay').toDataURL()"))
    for view in ("attention", "image"):
        page.select_option("#try-view", view)
        pictures.add(page.evaluate("document.getElementById('overlay').toDataURL()"))
    assert len(pictures) == len(names) + 2


def test_the_slider_asks_again_and_shows_what_was_dropped(page: Any, service: Service, photo: Path) -> None:
    choose(page, photo)
    assert page.locator("#capacity-value").text_content() == "none set: nothing is dropped"
    own = page.locator("#try-answer .label").first.text_content()
    page.locator("#capacity").focus()
    page.keyboard.press("Home")  # the smallest capacity
    page.wait_for_function("() => document.querySelector('#cost').innerText.includes('Difference')")
    assert page.locator("#capacity-value").text_content() == "0.10×"
    trace = own_trace(service, photo, 0.1)
    assert trace.kept < 0.5
    assert f"{100 * trace.kept:.1f} %" in page.locator("#cost").inner_text()
    dropped = sum(not kept for line in trace.layers[LAYER].to_json()["kept"] for kept in line)
    assert page.locator(".chip.still").text_content() == f"dropped {dropped}"
    now = trace.prediction.classes[0][0]
    verdict = page.locator("#changed").text_content()
    assert verdict == ("The answer is the same." if now == own else f"The answer changed: {own} → {now}")
    page.click("#capacity-own")
    page.wait_for_function("() => !document.querySelector('#cost').innerText.includes('Difference')")
    assert page.locator("#capacity-value").text_content() == "none set: nothing is dropped"
    assert page.locator("#try-answer .label").first.text_content() == own


def test_a_late_answer_for_an_earlier_capacity_is_dropped(page: Any, photo: Path) -> None:
    choose(page, photo)
    ended: list[str] = []
    page.on("requestfailed", lambda request: ended.append(request.failure))

    def slowly(route: Any) -> None:
        page.wait_for_timeout(600)
        route.continue_()

    page.route("**/v1/explain", slowly, times=1)
    page.locator("#capacity").focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(250)  # the call is on its way
    page.keyboard.press("End")
    page.wait_for_function("() => document.querySelector('#cost').innerText.includes('Difference')")
    page.wait_for_timeout(700)
    assert "net::ERR_ABORTED" in ended
    assert page.locator("#capacity-value").text_content() == "2.00×"
    assert "100.0 %" in page.locator("#cost").inner_text()


def test_a_dense_model_has_no_experts_and_no_capacity(page: Any, photo: Path) -> None:
    choose(page, photo)
    page.select_option("#try-model", "1")
    page.wait_for_function("() => document.querySelector('#legend').innerText.includes('no experts')")
    assert page.locator("#capacity-card").is_hidden()
    assert page.locator("#experts").is_hidden()
    assert "experts" not in page.locator("#try-view option").all_text_contents()
