"""Predictions, against upstream's labels and against eager computation with a small network."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from isanet_zoo.engines.engine import Engine, create_engine
from isanet_zoo.engines.torch_engine import TorchEngine
from isanet_zoo.errors import InputError, UnknownModelError
from isanet_zoo.imaging.preprocess import prepare
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.inference.predictor import MAX_BATCH, Predictor, predict
from isanet_zoo.inference.tiles import tile_grid
from isanet_zoo.inference.views import Grid
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.lookup import get_weights
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.layouts import SSSEG
from isanet_zoo.weights.saving import save_model
from isanet_zoo.zoo import create_model
from tests import reference
from tests.conftest import TINY_NETWORK, TinyZoo
from tests.gpu import CUDA, needs_gpu
from tests.processes import forkserver

Pixels = NDArray[np.uint8]


def make_image(height: int, width: int, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]


def pixels_of(image: Pixels) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1)[None].copy())  # (1, 3, H, W)


def normalised(image: Pixels) -> Tensor:
    config = Preprocess()
    values = (image - np.array(config.mean)) / np.array(config.std)
    return torch.from_numpy(values.transpose(2, 0, 1)[None].astype(np.float32))


@pytest.fixture(scope="module")
def model() -> ISANet:
    """A small network that assigns parts of an image to each of its five classes."""
    views = torch.cat([normalised(make_image(64, 64, seed)) for seed in range(4)])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = ISANet("test_resnet", num_classes=5, head=TINY_NETWORK.head).train()
        for _ in range(10):
            network(views)  # collect the statistics of the norms
        network.eval().get_parameter("head.classifier.weight").mul_(20)
        means = network.forward_logits(views).mean((0, 2, 3))
        network.get_parameter("head.classifier.bias").sub_(means)
    return network


def upscaled(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def assert_agrees(segmentation: Segmentation, scores: Tensor) -> None:
    """Compare labels where no two classes are nearly equal, and probabilities everywhere."""
    best = scores[0].topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-3).numpy()
    expected = scores[0].argmax(0).numpy()
    assert clear.mean() > 0.95
    assert len(np.unique(expected)) >= 3, "a map of one class proves nothing"
    assert np.array_equal(segmentation.labels[clear], expected[clear])
    assert segmentation.probabilities is not None
    torch.testing.assert_close(
        torch.from_numpy(segmentation.probabilities), scores[0].softmax(0), rtol=0, atol=1e-4
    )


def assert_same(one: Segmentation, other: Segmentation) -> None:
    assert np.array_equal(one.labels, other.labels)
    for ours, theirs in (
        (one.confidence, other.confidence),
        (one.probabilities, other.probabilities),
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def one(result: Segmentation | list[Segmentation]) -> Segmentation:
    assert isinstance(result, Segmentation)
    return result


def several(result: Segmentation | list[Segmentation]) -> list[Segmentation]:
    assert isinstance(result, list)
    return result


class TestAgainstUpstream:
    NAME = "isanet_resnet50os8_voc"

    @pytest.fixture
    def network(self) -> ISANet:
        network = create_model(self.NAME, aux_loss=True)
        state = reference.fill(reference.upstream_shapes(self.NAME))
        network.load_state_dict(SSSEG.translate(state))
        return network.eval()

    def test_labels_and_logits_equal_upstreams(
        self, network: ISANet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        golden = reference.golden(f"e2e_{self.NAME}")
        image = reference.make_image("img375x500", block=40)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        forward = TorchEngine.__call__

        def record(engine: TorchEngine, images: torch.Tensor) -> torch.Tensor:
            seen.append((images, forward(engine, images)))
            return seen[-1][1].clone()

        monkeypatch.setattr(TorchEngine, "__call__", record)
        labels = one(predict(network, image)).labels
        ((images, logits),) = seen
        assert torch.equal(images, get_weights(self.NAME).transforms()(image))
        assert logits.shape == tuple(golden["logits8_shape"])
        crop = logits[0, :, :16, :16].numpy()
        np.testing.assert_allclose(crop, golden["logits8_crop"], rtol=0, atol=1e-5)

        height, width = labels.shape
        close = np.unpackbits(golden["low_margin_mask"])[: height * width].astype(bool)
        differs = labels != golden["pred"]
        assert close.mean() < 0.01
        assert len(np.unique(golden["pred"])) >= 3
        assert not differs[~close.reshape(height, width)].any()


@needs_gpu
def test_labels_on_a_gpu_equal_those_on_the_cpu(model: ISANet) -> None:
    image = make_image(150, 203)
    here = one(predict(model, image, confidence=True))
    there = one(predict(model, image, confidence=True, device="cuda"))
    assert (here.labels == there.labels).mean() > 0.999
    assert here.confidence is not None
    assert there.confidence is not None
    np.testing.assert_allclose(here.confidence, there.confidence, atol=5e-3)
    assert next(model.parameters()).device.type == "cpu"


@needs_gpu
def test_cuda_graphs_reproduce_the_eager_result(model: ISANet) -> None:
    """The first image of a size runs eagerly, the second is captured, the third replayed."""
    images = [make_image(*size, seed) for seed in range(4) for size in ((96, 128), (150, 203))]
    predictor = Predictor(model, device="cuda", probabilities=True)
    for image in images:
        eager = one(Predictor(model, device="cuda", probabilities=True)(image))
        assert_same(one(predictor(image)), eager)
    with ThreadPoolExecutor(4) as pool:
        for ours, image in zip(pool.map(predictor, images), images, strict=True):
            assert_same(one(ours), one(predictor(image)))


class TestOptions:
    def test_single_image_is_resized_once(self, model: ISANet) -> None:
        image = make_image(150, 203)
        with torch.no_grad():
            scores = upscaled(model.forward_logits(normalised(image)), (150, 203))
        assert_agrees(one(predict(model, image, probabilities=True)), scores)

    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("scales", [(1.0,), (0.5,), (0.5, 1.0, 1.75)])
    def test_scales_and_flips_average_logits(
        self, model: ISANet, scales: tuple[float, ...], flip: bool
    ) -> None:
        image = make_image(150, 203)
        views = []
        with torch.no_grad():
            for scale in scales:
                images = F.interpolate(
                    normalised(image), scale_factor=scale, mode="bilinear", align_corners=False
                )
                views.append(upscaled(model.forward_logits(images), (150, 203)))
                if flip:
                    mirrored = model.forward_logits(images.flip(3))
                    views.append(upscaled(mirrored, (150, 203)).flip(3))
        segmentation = one(predict(model, image, scales=scales, flip=flip, probabilities=True))
        assert_agrees(segmentation, torch.stack(views).mean(0))

    @pytest.mark.parametrize("batch_size", [1, 5])
    @pytest.mark.parametrize(
        ("tile", "overlap", "side", "stride"),
        [
            (64, 0.25, (64, 64), (48, 48)),
            ((64, 96), 0.5, (64, 96), (32, 48)),
            (80, 0.0, (80, 80), (80, 80)),
            (999, 0.25, (999, 999), (749, 749)),
        ],
    )
    def test_tiles_average_logits_at_the_networks_input_size(
        self,
        model: ISANet,
        tile: int | tuple[int, int],
        overlap: float,
        side: tuple[int, int],
        stride: tuple[int, int],
        batch_size: int,
    ) -> None:
        image = make_image(150, 203)
        images = normalised(image)
        total, count = torch.zeros(1, 5, 150, 203), torch.zeros(150, 203)
        for top, left, height, width in tile_grid((150, 203), Grid(side, stride)):
            bottom, right = top + height, left + width
            with torch.no_grad():
                logits = model.forward_logits(images[:, :, top:bottom, left:right])
            total[:, :, top:bottom, left:right] += upscaled(logits, (height, width))
            count[top:bottom, left:right] += 1
        segmentation = predict(
            model, image, tile=tile, overlap=overlap, batch_size=batch_size, probabilities=True
        )
        assert_agrees(one(segmentation), total / count)

    def test_images_are_resized_unless_resize_is_false(self, model: ISANet) -> None:
        image = make_image(150, 203)
        resizing = copy.deepcopy(model)
        resizing.preprocess = Preprocess(resize=(256, 120))
        with torch.no_grad():
            scores = model.forward_logits(prepare(pixels_of(image), resizing.preprocess))
        resized = one(predict(resizing, image, probabilities=True))
        assert_agrees(resized, upscaled(scores, (150, 203)))
        whole = one(predict(resizing, image, resize=False))
        assert_same(whole, one(predict(model, image)))
        assert not np.array_equal(whole.labels, resized.labels)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_network_has_float32_logits(
        self, model: ISANet, dtype: torch.dtype
    ) -> None:
        image = make_image(150, 203)
        with torch.no_grad():
            exact = upscaled(model.forward_logits(normalised(image)), (150, 203)).softmax(1)[0]
        seen: list[torch.dtype] = []
        predictor = Predictor(model, dtype=dtype, probabilities=True)
        assert isinstance(predictor.engine, TorchEngine)
        head = predictor.engine.network.head
        for part in (head.fuse, head.classifier):
            part.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        segmentation = one(predictor(image))
        assert seen == [dtype, torch.float32]
        assert segmentation.probabilities is not None
        error = np.abs(segmentation.probabilities - exact.numpy())
        assert 1e-5 < error.max() < 0.2
        assert error.mean() < 0.02

    def test_confidence_is_the_largest_probability(self, model: ISANet) -> None:
        image = make_image(100, 130)
        both = one(predict(model, image, confidence=True, probabilities=True))
        assert both.confidence is not None
        assert both.probabilities is not None
        assert np.array_equal(both.confidence, both.probabilities.max(0))
        assert np.array_equal(both.labels, both.probabilities.argmax(0))
        np.testing.assert_allclose(both.probabilities.sum(0), 1, rtol=0, atol=1e-6)
        neither = one(predict(model, image))
        assert (neither.confidence, neither.probabilities) == (None, None)

    def test_compile_runs_the_compiled_network(
        self, model: ISANet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiled: list[Callable[..., Tensor]] = []

        def compile_(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
            compiled.append(forward)
            return lambda images: -forward(images)

        monkeypatch.setattr(torch, "compile", compile_)
        image = make_image(60, 80)
        segmentation = one(Predictor(model, compile=True, probabilities=True)(image))
        with torch.no_grad():
            scores = upscaled(-model.forward_logits(normalised(image)), (60, 80))
        assert len(compiled) == 1
        assert_agrees(segmentation, scores)

    def test_progress_that_is_not_callable_is_refused(self, model: ISANet) -> None:
        with pytest.raises(InputError, match="progress is True"):
            predict(model, make_image(20, 30), progress=True)  # type: ignore[arg-type]

    def test_predictor_and_predict_have_the_same_options(self) -> None:
        def options(function: Callable[..., Any], *others: str) -> dict[str, inspect.Parameter]:
            parameters = inspect.signature(function).parameters
            return {
                name: parameter
                for name, parameter in parameters.items()
                if parameter.kind is parameter.KEYWORD_ONLY and name not in others
            }

        assert options(Predictor, "compile") == options(predict, "progress")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "batch_size is 0"),
            ({"batch_size": 1.5}, r"batch_size is 1\.5"),
            ({"batch_size": 10**9}, f"batch_size is {10**9}; .*{MAX_BATCH}"),
            ({"scales": (1.0, 0.0)}, r"scales are \(1\.0, 0\.0\)"),
            ({"overlap": 1.0}, r"overlap is 1\.0"),
            ({"tile": 0}, "tile is 0"),
            ({"flip": "no"}, "flip is 'no'; pass True or False"),
            ({"resize": 1}, "resize is 1; pass True or False"),
            ({"confidence": None}, "confidence is None; pass True or False"),
            ({"probabilities": 0.5}, r"probabilities is 0\.5; pass True or False"),
            ({"compile": "yes"}, "compile is 'yes'; pass True or False"),
            ({"engine": "tensorrt"}, "engine is 'tensorrt'; choose one of torch"),
            ({"dtype": torch.float64}, "dtype is torch.float64"),
            ({"dtype": np.array([1, 2])}, "dtype is array"),
            ({"device": "gpu"}, "device 'gpu' is not available"),
            ({"device": "meta"}, "device 'meta' is not available"),
        ],
        ids=str,
    )
    def test_bad_option_is_named_with_its_value(
        self, model: ISANet, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            Predictor(model, **options)

    def test_bad_option_is_found_before_weights_are_loaded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load(name: str, pretrained: bool) -> ISANet:
            raise AssertionError("loads weights")

        monkeypatch.setattr("isanet_zoo.inference.predictor.create_model", load)
        for options in ({"tile": 0}, {"batch_size": 0}, {"device": "gpu"}, {"flip": 1}):
            with pytest.raises(InputError):
                Predictor("isanet_resnet50os8_voc", **options)

    @pytest.mark.parametrize("scale", [0.1, 16.0])
    def test_scale_that_makes_a_bad_size_is_refused_at_once(
        self, model: ISANet, scale: float
    ) -> None:
        """Neither no pixels at all nor more than 2 ** 28 of them."""
        image = torch.zeros(1, 1, 3, dtype=torch.uint8).expand(9, 9, 3).numpy()
        large = np.broadcast_to(np.uint8(0), (2000, 2000, 3))
        predictor = Predictor(model, scales=[scale])
        with pytest.raises(InputError, match=f"scale {scale} makes .* pixels"):
            predictor(image if scale < 1 else large)

    def test_too_many_tiles_are_refused_at_once(self, model: ISANet) -> None:
        start = time.perf_counter()
        with pytest.raises(InputError, match="900 x 1200 tiles"):
            predict(model, make_image(900, 1200), tile=1)
        assert time.perf_counter() - start < 2

    @pytest.mark.parametrize(
        ("refused", "reason"),
        [
            (lambda: ISANet("test_resnet", num_classes=5, in_chans=4), "4 channels"),
            (lambda: ISANet("test_resnet", num_classes=257), "257 classes"),
            (lambda: torch.nn.Conv2d(3, 5, 1), "Conv2d"),
            (lambda: None, "NoneType"),
        ],
        ids=["channels", "classes", "module", "nothing"],
    )
    def test_unsuitable_network_is_refused(self, refused: Callable[[], Any], reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            predict(refused(), make_image(8, 8))


class TestManyImages:
    SIZES = ((100, 130), (64, 80), (100, 130), (130, 100), (64, 80), (100, 130), (8, 9))

    @pytest.fixture
    def images(self) -> list[Pixels]:
        return [make_image(*size, seed=number) for number, size in enumerate(self.SIZES)]

    @pytest.mark.parametrize("batch_size", [1, 2, 16])
    @pytest.mark.parametrize("tile", [None, 48])
    def test_batches_of_mixed_sizes_return_the_results_of_single_images(
        self, model: ISANet, images: list[Pixels], batch_size: int, tile: int | None
    ) -> None:
        alone = [one(predict(model, image, tile=tile, confidence=True)) for image in images]
        together = predict(model, images, batch_size=batch_size, tile=tile, confidence=True)
        for ours, theirs in zip(several(together), alone, strict=True):
            assert_same(ours, theirs)

    def test_images_of_one_size_share_a_batch(
        self, model: ISANet, images: list[Pixels], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[int, ...]] = []
        forward = ISANet.forward_logits

        def watched(self: ISANet, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            return forward(self, images)

        monkeypatch.setattr(ISANet, "forward_logits", watched)
        predict(model, images, batch_size=2)
        assert sorted(seen) == [
            (1, 3, 8, 9),
            (1, 3, 100, 130),
            (1, 3, 130, 100),
            (2, 3, 64, 80),
            (2, 3, 100, 130),
        ]

    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
    def test_very_small_and_thin_images_are_segmented(
        self, model: ISANet, size: tuple[int, int]
    ) -> None:
        assert one(predict(model, make_image(*size))).labels.shape == size

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_stream_reads_one_batch_ahead(self, model: ISANet, batch_size: int) -> None:
        read = 0

        def frames() -> Iterator[Pixels]:
            nonlocal read
            for number in range(20):
                read += 1
                yield make_image(40, 48, seed=number)

        stream = Predictor(model, batch_size=batch_size).stream(frames())
        assert read == 0
        for number, _ in enumerate(itertools.islice(stream, 10)):
            assert read == (number // batch_size + 1) * batch_size
        assert sum(1 for _ in stream) == 10

    def test_error_of_the_source_comes_after_the_images_before_it(self, model: ISANet) -> None:
        def frames() -> Iterator[Pixels]:
            for height in (40, 48, 40):
                yield make_image(height, 48)
            raise ValueError("camera")

        stream = Predictor(model, batch_size=4).stream(frames())
        assert [next(stream).labels.shape[0] for _ in range(3)] == [40, 48, 40]
        with pytest.raises(ValueError, match="camera"):
            next(stream)

    def test_folder_returns_its_images_in_order_with_their_paths(
        self, model: ISANet, images: list[Pixels], tmp_path: Path
    ) -> None:
        paths = [tmp_path / f"{number}.png" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
        results = several(predict(model, tmp_path, batch_size=2))
        assert [result.path for result in results] == paths
        for result, image in zip(results, images, strict=True):
            assert np.array_equal(result.labels, one(predict(model, image)).labels)

    def test_error_names_the_bad_image_among_many(self, model: ISANet, tmp_path: Path) -> None:
        bad = tmp_path / "bad.jpg"
        bad.write_text("text")
        with pytest.raises(InputError, match=r"bad\.jpg"):
            predict(model, [make_image(40, 48), bad])

    @pytest.mark.parametrize("images", ["", Path("no/such.png"), "https://a.b/c.png"], ids=str)
    def test_path_that_is_no_file_is_refused(self, model: ISANet, images: Any) -> None:
        with pytest.raises(InputError):
            predict(model, images)

    @pytest.mark.parametrize("images", [7, None])
    def test_other_types_are_refused(self, model: ISANet, images: Any) -> None:
        with pytest.raises(InputError, match=type(images).__name__):
            predict(model, images)

    def test_empty_list_returns_an_empty_list(self, model: ISANet) -> None:
        assert predict(model, []) == []

    def test_progress_counts_images(
        self, model: ISANet, images: list[Pixels], tmp_path: Path
    ) -> None:
        Image.fromarray(images[1]).save(tmp_path / "one.png")
        for source, total, batch_size in (
            (images[:4], 4, 1),
            (images[:4], 4, 3),
            (iter(images[:4]), None, 2),
            (tmp_path, 1, 1),
            (images[1], 1, 1),
        ):
            seen: list[tuple[int, int | None]] = []
            predict(
                model,
                source,
                batch_size=batch_size,
                progress=lambda *counts, seen=seen: seen.append(counts),
            )
            last = 4 if total is None else total
            assert seen == [(done, total) for done in range(1, last + 1)]


def global_state() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.mkldnn.enabled,
        torch.get_rng_state().tolist(),
    )


class TestSideEffects:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_network_is_not_changed(
        self, model: ISANet, training: bool, dtype: torch.dtype
    ) -> None:
        model = copy.deepcopy(model).to(dtype).train(training).freeze_backbone()

        def state() -> list[tuple[object, ...]]:
            modes = [(name, module.training) for name, module in model.named_modules()]
            tensors = [
                (name, id(tensor), tensor.data_ptr(), tensor.stride(), tensor.requires_grad)
                for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers())
            ]
            return [*modes, *tensors]

        before, values = state(), copy.deepcopy(model.state_dict())
        predict(model, make_image(60, 80), flip=True, dtype=torch.bfloat16)
        assert state() == before
        assert all(torch.equal(values[key], now) for key, now in model.state_dict().items())

    def test_predictor_does_not_change_with_its_network(self, model: ISANet) -> None:
        image, model = make_image(60, 80), copy.deepcopy(model)
        predictor = Predictor(model, probabilities=True)
        before = one(predictor(image))
        with torch.no_grad():
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                tensor.zero_()
        assert_same(one(predictor(image)), before)

    def test_bfloat16_network_is_computed_in_float32(self, model: ISANet) -> None:
        image = make_image(60, 80)
        half = copy.deepcopy(model).bfloat16()
        expected = one(predict(copy.deepcopy(half).float(), image, confidence=True))
        assert_same(one(predict(half, image, confidence=True)), expected)

    def test_network_in_training_mode_predicts_as_in_evaluation_mode(self, model: ISANet) -> None:
        image = make_image(60, 80)
        trained = copy.deepcopy(model).train()
        assert_same(one(predict(trained, image)), one(predict(model, image)))

    def test_global_state_of_torch_is_not_changed(self, model: ISANet) -> None:
        before = global_state()
        predict(model, [make_image(60, 80)] * 3, batch_size=2, dtype=torch.bfloat16, tile=48)
        assert global_state() == before

    def test_outer_autocast_has_no_effect(self, model: ISANet) -> None:
        image = make_image(60, 80)
        expected = one(predict(model, image, probabilities=True))
        with torch.autocast("cpu", torch.bfloat16):
            predictor = Predictor(model, probabilities=True)
            assert_same(one(predictor(image)), expected)
        assert_same(one(predictor(image)), expected)

    @pytest.mark.parametrize("device", ["cpu", CUDA])
    def test_copied_predictor_returns_the_same_results(self, model: ISANet, device: str) -> None:
        predictor = Predictor(model, device=device, confidence=True)
        image = make_image(60, 80)
        expected = one(predictor(image))
        assert_same(one(predictor(image)), expected)  # on a GPU, it has a graph now
        for copied in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
            assert_same(one(copied(image)), expected)

    @pytest.mark.parametrize("device", ["cpu", CUDA])
    def test_predictor_works_in_another_process(self, model: ISANet, device: str) -> None:
        predictor, image = Predictor(model, device=device, confidence=True), make_image(60, 80)
        expected = one(predictor(image))
        with ProcessPoolExecutor(1, forkserver()) as pool:
            assert_same(pool.submit(predictor, image).result(), expected)  # type: ignore[arg-type]

    def test_threads_return_the_results_of_one_thread(self, model: ISANet) -> None:
        predictor = Predictor(model, batch_size=2, flip=True, confidence=True)
        batches = [
            [make_image(40 + 8 * size, 60, seed) for size in (0, 1, 0)] for seed in range(12)
        ]
        alone = [several(predictor(batch)) for batch in batches]
        with ThreadPoolExecutor(6) as pool:
            together = [several(result) for result in pool.map(predictor, batches)]
        for ours, theirs in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
            assert_same(ours, theirs)


class TestByName:
    @pytest.fixture(autouse=True)
    def _mirror(self, tiny_zoo: TinyZoo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))

    def test_name_loads_the_published_weights(self, tiny_zoo: TinyZoo) -> None:
        image = make_image(60, 80)
        segmentation = one(predict("isanet_tiny", image, confidence=True))
        assert segmentation.label_set == tiny_zoo.weights.label_set
        network = create_model("isanet_tiny", pretrained=True)
        assert_same(segmentation, one(predict(network, image, confidence=True)))
        by_name = Predictor("isanet_tiny", confidence=True)
        assert_same(segmentation, one(by_name(image)))

    def test_name_is_computed_on_the_best_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen: list[object] = []

        def create_on_cpu(network: ISANet, *, device: object, **options: Any) -> Engine:
            chosen.append(device)
            return create_engine(network, device="cpu", **options)

        best = torch.device("cuda", 3)
        monkeypatch.setattr("isanet_zoo.inference.predictor.create_engine", create_on_cpu)
        monkeypatch.setattr("isanet_zoo.inference.predictor.best_device", lambda: best)
        monkeypatch.setattr(
            "isanet_zoo.inference.predictor.resolve_device",
            lambda device, default: default if device is None else torch.device(device),
        )
        Predictor("isanet_tiny")
        Predictor("isanet_tiny", device="cpu")
        Predictor(create_model("isanet_tiny"))
        assert chosen == [best, torch.device("cpu"), None]

    def test_file_of_a_saved_network_is_loaded(self, model: ISANet, tmp_path: Path) -> None:
        image = make_image(60, 80)
        for network in (model, create_model("isanet_tiny", pretrained=True)):
            path = tmp_path / f"{network.config.backbone}.safetensors"
            save_model(network, path)
            expected = one(predict(network, image, confidence=True))
            assert_same(one(predict(path, image, confidence=True)), expected)
            assert_same(one(predict(str(path), image, confidence=True)), expected)

    def test_file_without_a_description_is_refused(self, tiny_zoo: TinyZoo) -> None:
        with pytest.raises(InputError, match="does not describe its network; pass it as weights"):
            Predictor(tiny_zoo.published)

    @pytest.mark.parametrize("name", ["", "no_such_model", "no/such/file.pth"])
    def test_unknown_name_is_refused(self, name: str) -> None:
        with pytest.raises((UnknownModelError, InputError)):
            Predictor(name)
