"""Runs of the examples for other tools: Ray, FastAPI, rasterio and Label Studio."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import isanet_zoo
from tests.learning import tiny

EXAMPLES = Path(isanet_zoo.__file__).parents[1] / "examples"


def load(name: str) -> Any:
    """Import an example as a module, each time anew."""
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text("utf-8").splitlines()) < 70
    spec = importlib.util.spec_from_file_location(f"example_{name}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a small model with random weights."""
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    isanet_zoo.save_model(tiny.network(isanet_zoo.LabelSet.generic(5), seed=20), path)
    return str(path)


@pytest.fixture(scope="module")
def expected(model: str) -> isanet_zoo.Segmentation:
    """The model's labels of `crop`."""
    segmentation = next(isanet_zoo.Predictor(model).stream(crop()))
    assert len(segmentation.present()) > 2
    return segmentation


def crop() -> Image.Image:
    with Image.open(EXAMPLES / "street.jpg") as photo:
        return photo.crop((200, 250, 360, 370))


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


DOCUMENT = (EXAMPLES.parent / "docs" / "interoperate.md").read_text("utf-8")


@pytest.mark.usefixtures("small_inputs")
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL))
def test_python_of_the_page_runs(
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: isanet_zoo.Segmentation,
) -> None:
    for tool in re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE):
        pytest.importorskip(tool)
    (tmp_path / "examples").mkdir()
    crop().save(tmp_path / "examples" / "street.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "interoperate.md", "exec"), {"segmentation": expected})


class _Rows:
    """The part of `ray.data` that the example uses, in one process."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def map(
        self, kind: Callable[..., Any], *, fn_constructor_args: tuple[str, ...], **_: Any
    ) -> _Rows:
        worker = kind(*fn_constructor_args)
        return _Rows([worker(row) for row in self.rows])

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class TestRayBatch:
    def check(self, tmp_path: Path, model: str, expected: isanet_zoo.Segmentation) -> None:
        """Run the example on one good and two bad files, and again after a stop."""
        photos, out = tmp_path / "photos", tmp_path / "out"
        (photos / "nested").mkdir(parents=True)
        good = photos / "nested" / "good.png"
        crop().save(good)
        (photos / "text.jpg").write_text("no image")
        (photos / "cut.png").write_bytes(good.read_bytes()[:200])
        example = load("ray_batch")
        assert example.main(str(photos), str(out), "2", model) == 1
        rows = [json.loads(line) for line in (out / "rows.jsonl").read_text("utf-8").splitlines()]
        by_name = {Path(row["image"]).name: row for row in rows}
        assert by_name.keys() == {"good.png", "text.jpg", "cut.png"}
        assert by_name["good.png"]["classes"] == expected.to_dict()["classes"]
        assert "is not an image" in by_name["text.jpg"]["error"]
        labels = out / "nested" / "good.png.png"
        with Image.open(labels) as image:
            assert np.array_equal(np.asarray(image), expected.labels)
        for bad in ("text.jpg", "cut.png"):
            (photos / bad).unlink()
        changed = labels.stat().st_mtime_ns
        assert example.main(str(photos), str(out), "2", model) == 0
        (line,) = (out / "rows.jsonl").read_text("utf-8").splitlines()
        assert json.loads(line) == by_name["good.png"]
        assert labels.stat().st_mtime_ns == changed  # not computed again

    def test_bad_files_are_rows_and_labels_are_kept(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        model: str,
        expected: isanet_zoo.Segmentation,
    ) -> None:
        ray: Any = types.ModuleType("ray")
        ray.data = types.SimpleNamespace(from_items=_Rows, ActorPoolStrategy=lambda size: size)
        monkeypatch.setitem(sys.modules, "ray", ray)
        self.check(tmp_path, model, expected)

    @pytest.mark.filterwarnings("ignore")  # Ray's
    def test_ray_runs_it_with_two_workers(
        self, tmp_path: Path, model: str, expected: isanet_zoo.Segmentation
    ) -> None:
        ray = pytest.importorskip("ray")
        try:
            self.check(tmp_path, model, expected)
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def server(model: str) -> Any:
    """The module of `serve.py`."""
    pytest.importorskip("fastapi")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", model)
        return load("serve")


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Any]:
    """A client of its server, which runs until the last test."""
    from fastapi.testclient import TestClient

    with TestClient(server.app) as client:
        yield client


@pytest.mark.filterwarnings("ignore:Using `httpx` with")  # with huggingface_hub 1
class TestServe:
    def test_requests_at_once_are_answered_each_with_its_image(
        self, client: Any, expected: isanet_zoo.Segmentation
    ) -> None:
        good, bad = encoded(crop()), b"no image"

        def post(number: int) -> Any:
            body = bad if number % 4 == 3 else good
            return client.post(
                "/segment", content=body, params={"output": ("json", "png")[number % 2]}
            )

        with ThreadPoolExecutor(8) as pool:
            for number, answer in enumerate(pool.map(post, range(16))):
                if number % 4 == 3:
                    assert answer.status_code == 422
                    assert "not an image" in answer.json()["detail"]
                elif number % 2:
                    with Image.open(io.BytesIO(answer.content)) as image:
                        assert np.array_equal(np.asarray(image), expected.labels)
                else:
                    assert answer.json() == expected.to_dict()
        assert client.get("/health").json() == {"classes": "5 classes", "waiting": 0}

    def test_images_share_a_batch_unless_one_fails(self, server: Any) -> None:
        good = encoded(crop())
        first, error, second = server.segment([good, b"", good])
        assert isinstance(error, isanet_zoo.InputError)
        assert np.array_equal(first.labels, second.labels)

    def test_full_queue_is_answered_with_503(
        self, server: Any, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started, finish = threading.Event(), threading.Event()
        segment = server.segment

        def wait(images: list[bytes]) -> Any:
            started.set()
            assert finish.wait(60)
            return segment(images)

        monkeypatch.setattr(server, "segment", wait)
        monkeypatch.setattr(server, "slots", asyncio.Semaphore(2))
        with ThreadPoolExecutor(2) as pool:
            body = encoded(crop())
            waiting = [pool.submit(client.post, "/segment", content=body) for _ in range(2)]
            assert started.wait(60)
            while not server.slots.locked():
                threading.Event().wait(0.01)
            refused = client.post("/segment", content=b"")
            assert client.get("/health").status_code == 200
            finish.set()
            assert [future.result().status_code for future in waiting] == [200, 200]
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert client.post("/segment", content=encoded(crop())).status_code == 200

    def test_body_without_a_bound_is_refused(self, server: Any, client: Any) -> None:
        too_long = {"content-length": str(server.MOST_BYTES + 1)}
        assert client.post("/segment", content=iter([b"a"])).status_code == 413
        assert client.post("/segment", content=b"a", headers=too_long).status_code == 413
        assert client.post("/segment", content=b"", params={"output": "gif"}).status_code == 422

    def test_failure_of_the_network_does_not_stop_the_server(
        self, server: Any, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server.predictor, "batch_size", None)
        with pytest.raises(TypeError):  # passed on by the test client, a 500 by a server
            client.post("/segment", content=encoded(crop()))
        monkeypatch.undo()
        assert client.post("/segment", content=encoded(crop())).status_code == 200


@pytest.mark.filterwarnings("ignore:Use `@` matmul")  # rasterio with affine 3
class TestGeotiff:
    @pytest.fixture
    def raster(self, tmp_path: Path) -> Path:
        """A street of 300 x 250 pixels as a map, without data in a corner."""
        rasterio = pytest.importorskip("rasterio")
        with Image.open(EXAMPLES / "street.jpg") as photo:
            pixels = np.asarray(photo.crop((200, 200, 500, 450))).transpose(2, 0, 1)
        mask = np.full(pixels.shape[1:], 255, np.uint8)
        mask[-30:, :40] = 0
        path = tmp_path / "map.tif"
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "width": 300, "height": 250}
        transform = rasterio.transform.from_origin(500_000, 5_600_000, 0.2, 0.2)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", crs="EPSG:25832", transform=transform, **profile) as file,
        ):
            file.write(pixels)
            file.write_mask(mask)
        return path

    def test_labels_equal_those_of_the_whole_image(
        self, raster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        import rasterio

        example = load("geotiff")
        for name, value in (("TILE", 64), ("STRIDE", 48), ("BLOCK", 96)):
            monkeypatch.setattr(example, name, value)
        example.main(str(raster), str(tmp_path / "labels.tif"), model)
        with rasterio.open(raster) as source:
            image, valid = source.read().transpose(1, 2, 0), source.dataset_mask() > 0
            crs, transform = source.crs, source.transform
        predictor = isanet_zoo.Predictor(model, tile=64, overlap=0.25, resize=False)
        whole = next(predictor.stream(image))
        with rasterio.open(tmp_path / "labels.tif") as result:
            labels = result.read(1)
            assert (result.crs, result.transform, result.nodata) == (crs, transform, 255)
            assert result.colormap(1)[1][:3] == whole.label_set.colours[1]
            assert result.tags(1)["1"] == "class 1"
        assert (labels[valid] == whole.labels[valid]).mean() > 0.9999  # all, but for rounding
        assert (labels[~valid] == 255).all()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.tif", "map.tif"]

    @pytest.mark.parametrize("length", [1, 511, 512, 513, 1536, 1537, 5000])
    def test_windows_cover_a_side_with_all_tiles_on_them(self, length: int) -> None:
        pytest.importorskip("rasterio")
        example = load("geotiff")
        windows = example.spans(length)
        covered = [pixel for start, end, _, _ in windows for pixel in range(start, end)]
        assert covered == list(range(length))
        for start, end, first, last in windows:
            assert 0 <= first <= start < end <= last <= length
            assert first == 0 or start - first >= example.TILE - example.STRIDE or last == length

    def test_other_types_are_refused(self, tmp_path: Path, model: str) -> None:
        rasterio = pytest.importorskip("rasterio")
        path, profile = tmp_path / "dem.tif", {"driver": "GTiff", "width": 4, "height": 4}
        transform = rasterio.transform.from_origin(5, 5, 1, 1)
        with rasterio.open(
            path, "w", count=3, dtype="uint16", transform=transform, **profile
        ) as file:
            file.write(np.zeros((3, 4, 4), np.uint16))
        with pytest.raises(SystemExit, match=r"uint16.*gdal_translate"):
            load("geotiff").main(str(path), str(tmp_path / "labels.tif"), model)


def decode(rle: list[int]) -> list[int]:
    """Read Label Studio's runs bit by bit; return the bytes of the RGBA image."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    found: list[int] = []
    while len(found) < total:
        repeated, size = read(1), sizes[read(2)]
        length = read(size) + 1
        found += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    return found


class TestLabelStudio:
    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_masks_are_decoded(self, share: float) -> None:
        mask = np.random.default_rng(0).random((160, 120)) < share
        pixels = np.array(decode(load("label_studio").encode(mask))).reshape(160, 120, 4)
        assert np.array_equal(pixels, 255 * np.repeat(mask[:, :, None], 4, axis=2))

    def test_tasks_have_a_mask_for_each_class(
        self, tmp_path: Path, model: str, expected: isanet_zoo.Segmentation
    ) -> None:
        photos, out = tmp_path / "my photos", tmp_path / "out"
        photos.mkdir()
        crop().save(photos / "a.png")
        load("label_studio").main(str(photos), str(out), model)
        (task,) = json.loads((out / "tasks.json").read_text("utf-8"))
        assert task["data"]["image"] == "/data/local-files/?d=my%20photos/a.png"
        (prediction,) = task["predictions"]
        rebuilt = np.full(expected.labels.shape, 255, np.uint8)
        for region in prediction["result"]:
            (name,) = region["value"]["brushlabels"]
            pixels = np.reshape(decode(region["value"]["rle"]), (*rebuilt.shape, 4))
            rebuilt[pixels[:, :, 3] > 0] = expected.label_set.index(name)
        assert (rebuilt == expected.labels).mean() > 0.99  # without the smallest classes
        config = ElementTree.parse(out / "config.xml")
        found = [label.get("value") for label in config.iter("Label")]
        assert found == list(expected.label_set.names)
