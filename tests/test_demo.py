"""The demo page, driven in Chromium as a visitor would. `.ci/run` has what it needs."""

from __future__ import annotations

import http.server
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isanet_zoo
from isanet_zoo.imaging.reading import read_image
from tests import reference

pytestmark = pytest.mark.browser

EXAMPLES = Path(isanet_zoo.__file__).parents[1] / "examples"
BUILT_IN, OTHER = "isanet_efficientnet_lite0os8_camvid", "isanet_resnet50os8_voc"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses: the server reaches this machine alone
PATIENCE = 180  # seconds, on a busy machine


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    """Serve the checkpoint of `OTHER` in a few slow pieces; give the server's address."""
    buffer = io.BytesIO()
    torch.save({"model": reference.fill(reference.upstream_shapes(OTHER))}, buffer)
    content = buffer.getvalue()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            piece = len(content) // 5 + 1
            for start in range(0, len(content), piece):
                self.wfile.write(content[start : start + piece])
                time.sleep(0.5)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def address(mirror: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the page in a process of its own, whose warnings are its own; give its address."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the page is built with Gradio: pip install -e '.[demo]'")
    folder = tmp_path_factory.mktemp("demo")
    private = {
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "ISANET_ZOO_CACHE": str(folder / "cache"),
        "ISANET_ZOO_MIRROR": mirror,
        "HTTPS_PROXY": NOWHERE,
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1",
    }
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "demo.py")],
            env=os.environ | private,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.1)
    pytest.fail(f"the page did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium, for which no host but this one has an address."""
    driver = pytest.importorskip(
        "playwright.sync_api", reason="the browser is driven with playwright: pip install it"
    )
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    hosts = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with driver.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", hosts])


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """Open the page; at the end, see that nothing failed and that it asked this machine alone."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(1000 * PATIENCE)
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.get_by_text("Drop File Here").wait_for()
    yield page
    page.close()
    assert not problems
    assert asked
    assert all(url.startswith((address, "data:", f"blob:{address}")) for url in asked), asked


def _upload(page: Any, path: Path) -> None:
    page.locator("input[type=file]").set_input_files(path)


def _image(page: Any, image: Any) -> Image.Image:
    """Fetch what an element of the page shows."""
    image.wait_for()
    return Image.open(io.BytesIO(page.request.get(image.get_attribute("src")).body()))


def _difference(first: Image.Image, second: Image.Image) -> float:
    """Return the mean difference of two pictures of one size, 0..255."""
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


def _rows(segmentation: isanet_zoo.Segmentation) -> list[str]:
    return [f"{title}\t{share:.1%}" for _, title, share in segmentation.present(0.0005)]


def test_page_shows_what_the_library_says(page: Any) -> None:
    predictor = isanet_zoo.Predictor(BUILT_IN, confidence=True)
    for photo in (reference.DATA / "pictures" / "home.jpg", EXAMPLES / "street.jpg"):
        expected = predictor(photo)
        assert isinstance(expected, isanet_zoo.Segmentation)
        assert expected.confidence is not None
        if page.get_by_label("Clear").count():
            page.get_by_label("Clear").first.click()
            page.locator(".legend").wait_for(state="detached")
        _upload(page, photo)
        page.locator(".legend").wait_for()
        assert page.locator(".legend tr").all_inner_texts() == _rows(expected)

        slider = page.get_by_role("tabpanel").locator("img:visible")
        before, after = (_image(page, slider.nth(number)) for number in range(2))
        with Image.open(photo) as original:
            assert _difference(before, original) < 5  # what JPEG takes away
        assert _difference(after, expected.overlay(legend=False)) < 5
        assert _difference(before, after) > 20

        with page.expect_download() as download:
            page.get_by_text("Download the class map").click()
        assert download.value.suggested_filename == f"{photo.stem}.labels.png"
        with Image.open(download.value.path()) as class_map:
            assert class_map.mode == "P"
            assert np.array_equal(np.asarray(class_map), expected.labels)

        page.get_by_role("tab", name="Confidence").click()
        heat = _image(page, page.get_by_role("tabpanel").locator("img:visible").first)
        brightness = np.asarray(heat.convert("L"), float)
        assert np.corrcoef(brightness.ravel(), expected.confidence.ravel())[0, 1] > 0.9
        page.get_by_role("tab", name="Classes").click()
    if target := os.environ.get("DEMO_SCREENSHOT"):  # this is how the README's is made
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until nothing moves any more
        page.screenshot(path=target, type="jpeg", quality=85)


def test_bad_files_end_in_the_library_s_message(page: Any, tmp_path: Path) -> None:
    text, deep, broken = (tmp_path / name for name in ("text.jpg", "deep.png", "broken.jpg"))
    text.write_text("<b>no picture</b>")
    Image.fromarray(np.zeros((30, 40), np.uint16)).save(deep)
    broken.write_bytes((EXAMPLES / "street.jpg").read_bytes()[:20_000])
    messages = []
    for path in (text, deep, broken):
        _upload(page, path)
        with pytest.raises(isanet_zoo.InputError) as caught:
            read_image(path)
        messages.append(page.get_by_text(str(caught.value).replace(f"{tmp_path}{os.sep}", "")))
        messages[-1].wait_for()
        assert page.locator(".legend").count() == 0
        page.get_by_label("Clear").first.click()
    _upload(page, EXAMPLES / "street.jpg")  # and it goes on
    page.locator(".legend").get_by_text("Building").wait_for()
    assert [message.count() for message in messages] == [1, 1, 1]  # however fast one was cleared


def test_example_and_model_are_chosen_and_weights_fetched_in_view(page: Any) -> None:
    page.get_by_text("street.jpg").click()
    page.locator(".legend").get_by_text("Building").wait_for()
    page.get_by_label("Model").fill(OTHER)
    page.get_by_role("option", name=OTHER, exact=True).click()
    page.get_by_text("They are fetched on first use.").wait_for()
    page.get_by_text(re.compile(r"\d+\.\dM.* B")).filter(visible=True).wait_for()
    assert page.locator(".legend").count() == 0  # nothing of the other model
    page.locator(".legend").wait_for()
    names = isanet_zoo.get_weights(OTHER).label_set.names
    assert {row.split("\t")[0] for row in page.locator(".legend tr").all_inner_texts()} <= {*names}
