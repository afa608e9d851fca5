"""The web page in a browser: what a visitor does, by mouse, by keyboard and on a phone."""

import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest

from mimicdet_runtime import Detector
from mimicdet_runtime.server import Models
from tests.runtime.mock_model import make_metadata, write_mock
from tests.runtime.test_server import running

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
expect = playwright.expect
expect.set_options(timeout=15_000)  # a busy machine
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
if CHROMIUM is None:
    pytest.skip("needs Chromium (Debian: apt-get install chromium)", allow_module_level=True)


class SamplingDetector(Detector):
    """A model whose sampling can be shown: the corners of the box."""

    def sampling(self, image, box):
        x0, y0, x1, y1 = box
        return {"points": [[x0, y0], [x1, y1]], "anchor": [0, 0, image.shape[1], y1]}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(model_file):
    models = Models(lambda source, name: Detector(source, name=name))
    models.add(model_file, "mock.onnx")
    models.put(SamplingDetector(model_file), "sampling")
    with running(models) as page:
        yield page.address


@pytest.fixture
def tab(browser, address):
    """The opened page; afterwards: no script error, no request to anywhere else."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    context.set_default_timeout(15_000)
    page = context.new_page()
    problems, requests = [], []
    # Chromium reports a file dialog only to those who said beforehand that they would handle it.
    page.on("filechooser", lambda chooser: None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda one: requests.append(one.url))
    page.goto(address)
    expect(page.get_by_role("status")).to_have_text("Choose an image.")
    yield page
    context.close()
    assert problems == []
    assert [url for url in requests if not url.startswith((address, "blob:"))] == []


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.full((300, 400, 3), 204, np.uint8))
    return path


def slide(tab, label, value):
    tab.get_by_label(label).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        str(value),
    )


def detect(tab, photo):
    tab.get_by_label(re.compile("Choose an")).set_input_files(photo)
    expect(tab.get_by_role("status")).to_contain_text("Done")


def test_boxes_lie_where_the_objects_are(tab, photo):
    detect(tab, photo)
    expect(tab.locator(".box")).to_have_count(1)
    picture, box = tab.locator("#picture").bounding_box(), tab.locator(".box").bounding_box()
    scale = picture["width"] / 400
    assert box["x"] - picture["x"] == pytest.approx(100 * scale, abs=1)
    assert box["y"] - picture["y"] == pytest.approx(75 * scale, abs=1)
    assert box["width"] == pytest.approx(200 * scale, abs=1)
    assert tab.locator(".box span").inner_text() == "square 80%"
    expect(tab.locator("#summary")).to_have_text("1 of 2 detections shown, 400 × 300 pixels")


def test_sliders_and_classes_choose_without_asking_the_server(tab, photo):
    detect(tab, photo)
    asked = []
    tab.on("request", lambda one: asked.append(one.url))
    slide(tab, "Score at least", 0.2)
    expect(tab.locator("#objects button")).to_have_text(
        [re.compile("square"), re.compile("circle")]
    )
    slide(tab, "Objects at most", 1)
    expect(tab.locator(".box")).to_have_count(1)
    slide(tab, "Objects at most", 100)
    tab.get_by_label("square").uncheck()
    expect(tab.locator(".box span")).to_have_text("circle 25%")
    tab.get_by_role("button", name="None").click()
    expect(tab.locator(".box")).to_have_count(0)
    tab.get_by_role("button", name="All").click()
    tab.get_by_label("Names on the image").uncheck()
    expect(tab.locator(".box")).to_have_count(2)
    expect(tab.locator(".box span")).to_have_count(0)
    assert asked == []


def test_overlap_slider_suppresses_within_a_class(tab, tmp_path):
    """Three boxes in the server's place: the IoU of the first two is 25 / 175 = 0.143."""
    tab.evaluate(
        """async () => {
            const boxes = [[0, 0, 10, 10], [5, 5, 15, 15], [5, 5, 15, 15]];
            const scores = [0.9, 0.8, 0.7];
            const classes = [0, 0, 1];
            const found = boxes.map((box, i) => ({ box, score: scores[i], class: classes[i] }));
            const answer = { width: 20, height: 20, seconds: 0.1, detections: found };
            window.fetch = async () => new Response(JSON.stringify(answer));
        }"""
    )
    path = tmp_path / "any.png"
    cv2.imwrite(str(path), np.zeros((20, 20, 3), np.uint8))
    detect(tab, path)
    expect(tab.locator(".box")).to_have_count(3)
    slide(tab, "Overlap (IoU) at most", 0.15)
    expect(tab.locator(".box")).to_have_count(3)
    slide(tab, "Overlap (IoU) at most", 0.14)
    expect(tab.locator(".box")).to_have_count(2)
    expect(tab.locator("#objects button")).to_have_text([re.compile("90%"), re.compile("70%")])


def test_everything_can_be_done_by_keyboard(tab, photo):
    def focused():
        return tab.evaluate("document.activeElement.id || document.activeElement.textContent")

    order = []
    for _ in range(9):
        tab.keyboard.press("Tab")
        order.append(focused())
    ids = ["image-file", "model", "model-file", "score", "overlap", "limit", "labels"]
    assert [name for name in order if name in ids] == ids
    for _ in range(8):
        tab.keyboard.press("Shift+Tab")
    assert focused() == "image-file"
    outline = "getComputedStyle(document.getElementById('drop')).outlineStyle"
    assert tab.evaluate(outline) == "solid"
    with tab.expect_file_chooser() as chooser:
        tab.keyboard.press("Enter")
    chooser.value.set_files(photo)
    expect(tab.get_by_role("status")).to_contain_text("Done")
    tab.locator("#score").focus()
    tab.keyboard.press("Home")
    expect(tab.locator(".box")).to_have_count(2)
    row = tab.locator("#objects button").nth(1)
    row.focus()
    tab.keyboard.press("Enter")
    expect(row).to_have_attribute("aria-pressed", "true")
    assert "circle" in focused(), "the focus stays where it was"
    expect(tab.locator(".box.selected span")).to_have_text("circle 25%")


def test_json_of_what_is_shown(tab, photo):
    detect(tab, photo)
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download JSON").click()
    assert download.value.suggested_filename == "photo.json"
    with open(download.value.path(), encoding="utf-8") as file:
        content = json.load(file)
    assert content["images"] == [{"id": 1, "file_name": "photo.png", "width": 400, "height": 300}]
    assert [category["name"] for category in content["categories"]] == ["circle", "square"]
    (result,) = content["annotations"]
    assert result["category_id"] == 2 and result["score"] == pytest.approx(0.8)
    assert result["bbox"] == pytest.approx([100, 75, 200, 150], abs=0.1)


def test_a_model_is_added_and_chosen(tab, photo, tmp_path):
    detect(tab, photo)
    mine = write_mock(tmp_path / "mine.onnx", make_metadata(class_names=["cat", "dog"]))
    tab.get_by_label("Add an ONNX file").set_input_files(mine)
    expect(tab.locator(".box span")).to_have_text("dog 80%")
    assert tab.locator("#model option:checked").inner_text() == "mine.onnx (float32)"
    tab.get_by_label("Model", exact=True).select_option("mock.onnx (float32)")
    expect(tab.locator(".box span")).to_have_text("square 80%")


def test_errors_are_shown_and_go_away(tab, photo, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    tab.get_by_label("Choose an image").set_input_files(broken)
    expect(tab.get_by_role("alert")).to_have_text("the upload: not an image that can be read")
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"no model")
    tab.get_by_label("Add an ONNX file").set_input_files(wrong)
    expect(tab.get_by_role("alert")).to_contain_text("wrong.onnx: ONNX Runtime cannot load it")
    detect(tab, photo)
    expect(tab.get_by_role("alert")).to_be_hidden()


def test_an_image_is_dropped(tab):
    tab.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(40, 30);
            const context = canvas.getContext("2d");
            context.fillStyle = "white";
            context.fillRect(0, 0, 40, 30);
            const data = new DataTransfer();
            data.items.add(new File([await canvas.convertToBlob()], "drawn.png"));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
        }"""
    )
    expect(tab.locator(".box span")).to_have_text("square 100%")


def test_sampling_of_the_selected_object(tab, photo):
    detect(tab, photo)
    expect(tab.get_by_label("Sampling points")).to_be_hidden()
    tab.get_by_label("Model", exact=True).select_option("sampling (float32)")
    expect(tab.get_by_role("status")).to_contain_text("Done")
    tab.get_by_label("Sampling points").check()
    tab.locator(".box").click()
    expect(tab.locator("#sampling circle")).to_have_count(2)
    assert tab.locator("#sampling circle").nth(1).get_attribute("cx") == "300"
    expect(tab.locator("#sampling rect")).to_have_count(1)
    tab.locator(".box").click()
    expect(tab.locator("#sampling circle")).to_have_count(0)


def test_fits_a_phone(tab, photo):
    tab.set_viewport_size({"width": 390, "height": 844})
    detect(tab, photo)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    for box in tab.locator("select, button, .button").all():
        size = box.bounding_box()
        assert size is None or size["height"] >= 40
