"""The demo page, over HTTP and in Chromium. `.ci/run` installs what it needs."""

from __future__ import annotations

import base64
import contextlib
import http.server
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

import isanet_zoo
from isanet_zoo.imaging.reading import read_image
from tests import reference

pytestmark = pytest.mark.browser

EXAMPLES = Path(isanet_zoo.__file__).parents[1] / "examples"
STREET = EXAMPLES / "street.jpg"
BUILT_IN, OTHER = "isanet_efficientnet_lite0os8_camvid", "isanet_resnet50os8_voc"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses: the server reaches this machine only
PATIENCE = 180  # seconds, on a busy machine
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "**bold** [x](http://evil)",
    "{{7}} ${1 + 6} `c`",
    "\x1b[31m",
)
FAKE_PAGE = f"""
import sys
import time
from types import SimpleNamespace
sys.path.insert(0, {str(EXAMPLES)!r})
import numpy as np
import demo
from isanet_zoo import LabelSet, Segmentation
from isanet_zoo.imaging.reading import read_image

class Predictor:
    device = "cpu"
    engine = SimpleNamespace(name="torch")

    def stream(self, images):
        label_set = LabelSet.generic({len(HOSTILE)})
        object.__setattr__(label_set, "names", {HOSTILE!r})
        for image in images:
            time.sleep(0.5)  # the queue fills while visitors arrive
            height, width = read_image(image).size
            labels = np.arange(height * width).reshape(height, width) % {len(HOSTILE)}
            confidence = np.ones((height, width), np.float32)
            yield Segmentation(labels.astype(np.uint8), label_set, confidence, path=image)

demo.prepare = lambda name: Predictor()
demo.main()
"""


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **variables: str) -> Iterator[str]:
    """Run a page in a separate process; yield its address."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the page is built with Gradio: pip install -e '.[demo]'")
    environment = {
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "ISANET_ZOO_CACHE": str(folder / "cache"),
        "HTTPS_PROXY": NOWHERE,
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1",
    }
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | environment | variables,
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
def mirror() -> Iterator[str]:
    """Serve the checkpoint of `OTHER` in a few slow pieces; yield the server's address."""
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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def address(mirror: str, folder: Path) -> Iterator[str]:
    """Run the page as it is; yield its address."""
    with serving(folder, str(EXAMPLES / "demo.py"), ISANET_ZOO_MIRROR=mirror) as address:
        yield address


@pytest.fixture(scope="module")
def fake_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the page with a fast model, whose classes have hostile names; yield its address."""
    with serving(tmp_path_factory.mktemp("fake"), "-c", FAKE_PAGE) as address:
        yield address


def request(url: str, body: bytes | None = None, kind: str = "application/json") -> Any:
    return urllib.request.urlopen(
        urllib.request.Request(url, body, {"Content-Type": kind}), timeout=PATIENCE
    )


def status_of(url: str, body: bytes | None = None, kind: str = "application/json") -> int:
    try:
        with request(url, body, kind) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def form(content: bytes, name: str = "photo.jpg") -> tuple[bytes, str]:
    """Return a file as a form's body, and its content type."""
    head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"


class Visitor:
    """A session of the page, over HTTP."""

    def __init__(self, address: str) -> None:
        self.address = f"{address}/gradio_api"
        self.session = uuid.uuid4().hex
        with request(f"{address}/config") as response:
            dependencies = json.load(response)["dependencies"]
        (self.number,) = (d["id"] for d in dependencies if d["api_name"] == "segment")

    def upload(self, content: bytes) -> str:
        """Upload a file and return its path on the server."""
        with request(f"{self.address}/upload", *form(content)) as response:
            (path,) = json.load(response)
        return str(path)

    def segment(self, path: str) -> list[dict[str, Any]]:
        """Segment an uploaded file; return all messages of the session's stream."""
        call = {
            "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, BUILT_IN],
            "fn_index": self.number,
            "session_hash": self.session,
        }
        with request(f"{self.address}/queue/join", json.dumps(call).encode()) as response:
            response.read()
        messages = []
        with request(f"{self.address}/queue/data?session_hash={self.session}") as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    messages.append(json.loads(line[6:]))
                    if messages[-1]["msg"] in ("process_completed", "unexpected_error"):
                        break
        return messages


class TestServer:
    def test_no_file_is_served_to_any_visitor(self, address: str, folder: Path) -> None:
        visitor = Visitor(address)
        uploaded = visitor.upload(STREET.read_bytes())
        messages = visitor.segment(uploaded)
        assert "legend" in json.dumps(messages)
        assert "/file=" not in json.dumps(messages)
        secrets = [
            "/etc/passwd",
            uploaded,
            str(STREET),
            str(EXAMPLES / "demo.py"),
            f"{folder}/uploads/../cache",
            f"{uploaded}/../../../../../../../../etc/passwd",
        ]
        for secret in secrets:
            for form_of_path in (secret, quote(secret, ""), secret.replace("..", "%2e%2e")):
                for route in ("gradio_api/file=", "file=", "gradio_api/file/", "file/"):
                    status = status_of(f"{address}/{route}{form_of_path}")
                    assert status in (403, 404), (route, form_of_path)

    def test_path_that_was_not_uploaded_is_not_segmented(self, address: str) -> None:
        for path in (str(STREET), "/etc/passwd"):
            messages = Visitor(address).segment(path)
            assert not messages[-1]["success"]
            assert "legend" not in json.dumps(messages)

    def test_large_upload_is_refused_and_the_page_stays_usable(self, address: str) -> None:
        body, kind = form(bytes(200 << 20))
        # The server may close the connection before it has read everything.
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            assert status_of(f"{address}/gradio_api/upload", body, kind) == 413
        visitor = Visitor(address)
        assert visitor.segment(visitor.upload(STREET.read_bytes()))[-1]["success"]

    def test_large_image_is_refused_before_it_is_decoded(self, address: str) -> None:
        buffer = io.BytesIO()
        Image.new("1", (7000, 7000)).save(buffer, "PNG")
        visitor = Visitor(address)
        message = visitor.segment(visitor.upload(buffer.getvalue()))[-1]
        assert "is too large (7000 x 7000 pixels)" in message["output"]["error"]

    def test_ten_visitors_at_once_are_all_served(self, fake_address: str) -> None:
        def visit(number: int) -> list[dict[str, Any]]:
            visitor = Visitor(fake_address)
            with Image.open(STREET) as street:
                buffer = io.BytesIO()
                street.resize((100 + 10 * number, 80)).save(buffer, "JPEG")
            return visitor.segment(visitor.upload(buffer.getvalue()))

        with ThreadPoolExecutor(10) as pool:
            for messages in pool.map(visit, range(10)):
                assert messages[-1]["success"], messages[-1]

    def test_visitor_beyond_the_queue_gets_a_message(self, fake_address: str) -> None:
        visitors = [Visitor(fake_address) for _ in range(30)]
        path = visitors[0].upload(STREET.read_bytes())

        def visit(visitor: Visitor) -> str:
            try:
                return "served" if visitor.segment(path)[-1]["success"] else "failed"
            except urllib.error.HTTPError as error:
                with error:
                    return error.read().decode()

        with ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(visit, visitors))
        assert answers.count("served") >= 10
        assert all("ueue is full" in answer for answer in answers if answer != "served")
        assert visitors[0].segment(path)[-1]["success"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium, which can resolve no host name."""
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
    """Open the page; at the end, check that no script failed and no other host was requested."""
    with opened(browser, address) as page:
        yield page


@contextlib.contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
    page.set_default_timeout(1000 * PATIENCE)
    requested: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.goto(address)
    page.get_by_text("Drop File Here").wait_for()
    yield page
    page.close()
    assert not problems
    assert requested
    assert all(url.startswith((address, "data:", f"blob:{address}")) for url in requested)


def _upload(page: Any, path: Path) -> None:
    page.locator("input[type=file]").set_input_files(path)


def _image(image: Any) -> Image.Image:
    """Decode the data URL of an element of the page."""
    image.wait_for()
    head, _, content = image.get_attribute("src").partition(",")
    assert head in ("data:image/jpeg;base64", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def _difference(first: Image.Image, second: Image.Image) -> float:
    """Return the mean difference of two images of one size, 0..255."""
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


def _rows(segmentation: isanet_zoo.Segmentation) -> list[str]:
    return [f"{title}\t{fraction:.1%}" for _, title, fraction in segmentation.present(0.0005)]


class TestPage:
    def test_results_equal_those_of_the_library(self, page: Any) -> None:
        predictor = isanet_zoo.Predictor(BUILT_IN, confidence=True)
        for photo in (reference.DATA / "images" / "home.jpg", STREET):
            expected = predictor(photo)
            assert isinstance(expected, isanet_zoo.Segmentation)
            assert expected.confidence is not None
            if page.get_by_label("Clear").count():
                page.get_by_label("Clear").first.click()
                page.locator(".legend").wait_for(state="detached")
            _upload(page, photo)
            page.locator(".legend").wait_for()
            assert page.locator(".legend tr").all_inner_texts() == _rows(expected)

            shown = page.get_by_role("tabpanel").locator("img:visible")
            before, colours = (_image(shown.nth(number)).convert("RGB") for number in range(2))
            assert shown.nth(1).evaluate("image => getComputedStyle(image).opacity") == "0.5"
            with Image.open(photo) as original:
                assert _difference(before, original) < 5  # lost by JPEG
            after = Image.blend(before, colours, 0.5)
            assert _difference(after, expected.overlay(legend=False)) < 5
            assert page.get_by_text(re.compile(r"^\d+\.\d\d s on cpu, engine torch$")).count() == 1

            with page.expect_download() as download:
                page.get_by_text("Download the class map").click()
            assert download.value.suggested_filename == f"{photo.stem}.labels.png"
            with Image.open(download.value.path()) as class_map:
                assert class_map.mode == "P"
                assert np.array_equal(np.asarray(class_map), expected.labels)

            page.get_by_role("tab", name="Confidence").click()
            heat = _image(page.get_by_role("tabpanel").locator("img:visible").first)
            brightness = np.asarray(heat.convert("L"), float)
            assert np.corrcoef(brightness.ravel(), expected.confidence.ravel())[0, 1] > 0.9
            page.get_by_role("tab", name="Classes").click()
        if target := os.environ.get("DEMO_SCREENSHOT"):  # makes examples/demo.jpg
            page.locator(".shown:visible").hover()
            page.wait_for_timeout(1000)  # until nothing moves any more
            clip = {"x": 0, "y": 0, "width": 1280, "height": 640}
            page.screenshot(path=target, type="jpeg", quality=85, clip=clip)

    def test_opacity_of_the_colours_follows_the_slider(self, page: Any) -> None:
        _upload(page, STREET)
        page.get_by_label("Opacity").fill("20")
        colours = page.locator(".colours")
        assert colours.evaluate("image => getComputedStyle(image).opacity") == "0.2"

    @pytest.mark.parametrize("phone", [False, True])
    def test_result_fits_the_window_and_names_the_class_at_a_point(
        self, browser: Any, address: str, phone: bool
    ) -> None:
        expected = isanet_zoo.Predictor(BUILT_IN)(STREET)
        assert isinstance(expected, isanet_zoo.Segmentation)
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        with opened(browser, address, viewport=size, has_touch=phone, is_mobile=phone) as page:
            page.get_by_text("street.jpg").click()
            page.locator(".legend").wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
            for part in (".shown:visible", ".controls"):
                box = page.locator(part).bounding_box()
                assert 0 <= box["y"] <= box["y"] + box["height"] <= size["height"]
            box = page.locator(".shown:visible").bounding_box()
            assert box["width"] > (0.8 if phone else 0.45) * size["width"]
            touch = page.touchscreen.tap if phone else page.mouse.move
            height, width = expected.labels.shape
            for across, down in ((0.1, 0.3), (0.4, 0.1), (0.4, 0.85)):  # building, sky, pavement
                touch(box["x"] + across * box["width"], box["y"] + down * box["height"])
                index = expected.labels[int(down * height), int(across * width)]
                assert page.locator("output").inner_text() == expected.label_set.names[index]

    def test_click_shows_the_attention_of_the_point(self, page: Any) -> None:
        _upload(page, STREET)
        page.locator(".legend").wait_for()
        page.get_by_role("tab", name="Attention").click()
        shown = page.locator(".clicked img:visible")
        width, height = (shown.bounding_box()[side] for side in ("width", "height"))
        shown.click(position={"x": width / 4, "y": height / 2})
        page.get_by_text("effective radius").wait_for()
        with Image.open(STREET) as street:
            at = (street.width // 4, street.height // 2)
        expected = isanet_zoo.Predictor(BUILT_IN).explain(STREET, at)
        assert _difference(_image(shown), expected.overlay()) < 8  # JPEG, a pixel beside it

    def test_bad_files_end_in_the_messages_of_the_library(self, page: Any, tmp_path: Path) -> None:
        text, deep, broken = (tmp_path / name for name in ("text.jpg", "deep.png", "broken.jpg"))
        text.write_text("<b>no image</b>")
        Image.fromarray(np.zeros((30, 40), np.uint16)).save(deep)
        broken.write_bytes(STREET.read_bytes()[:20_000])
        messages = []
        for path in (text, deep, broken):
            _upload(page, path)
            with pytest.raises(isanet_zoo.InputError) as caught:
                read_image(path)
            messages.append(page.get_by_text(str(caught.value).replace(f"{tmp_path}{os.sep}", "")))
            messages[-1].wait_for()
            assert page.locator(".legend").count() == 0
            page.get_by_label("Clear").first.click()
        _upload(page, STREET)  # the page still works
        page.locator(".legend").get_by_text("Building").wait_for()
        assert [message.count() for message in messages] == [1, 1, 1]  # one each, cleared or not

    def test_large_file_ends_in_a_message(self, page: Any, tmp_path: Path) -> None:
        large = tmp_path / "large.jpg"
        with large.open("wb") as file:
            file.truncate(200 << 20)
        _upload(page, large)
        page.get_by_text("exceed the maximum allowed size of 32").wait_for()
        _upload(page, STREET)
        page.locator(".legend").get_by_text("Building").wait_for()

    def test_example_and_model_are_chosen_and_weights_downloaded(self, page: Any) -> None:
        page.get_by_text("street.jpg").click()
        page.locator(".legend").get_by_text("Building").wait_for()
        page.get_by_label("Model").fill(OTHER)
        page.get_by_role("option", name=OTHER, exact=True).click()
        page.get_by_text("They are downloaded on first use.").wait_for()
        page.get_by_text(re.compile(r"\d+\.\dM.* B")).filter(visible=True).wait_for()
        assert page.locator(".legend").count() == 0  # nothing of the other model
        page.locator(".legend").wait_for()
        names = isanet_zoo.get_weights(OTHER).label_set.names
        rows = page.locator(".legend tr").all_inner_texts()
        assert {row.split("\t")[0] for row in rows} <= {*names}

    def test_class_names_are_shown_as_text(self, browser: Any, fake_address: str) -> None:
        with opened(browser, fake_address) as page:
            _upload(page, STREET)
            page.locator(".legend").wait_for()
            rows = page.locator(".legend tr").all_inner_texts()
            names = [name.replace("\x1b", "\\x1b") for name in HOSTILE]
            assert [row.split("\t")[0] for row in rows] == names
            box = page.locator(".shown:visible").bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            assert page.locator("output").inner_text() in names
            assert page.locator(":is(.legend, output) :is(img, a, b, strong, code)").count() == 0

    def test_file_names_are_shown_as_text(self, page: Any, tmp_path: Path) -> None:
        path = tmp_path / "**b** <img src=x onerror=alert(1)> {{7}} ${1+6}.jpg"
        path.write_text("<b>no image</b>")
        _upload(page, path)
        message = page.get_by_text("is not an image file")
        message.wait_for()
        assert message.locator("img, b, strong").count() == 0
