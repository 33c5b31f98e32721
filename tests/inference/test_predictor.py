"""Whole predictions, against upstream's labels and against the plain way on a small network."""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.preprocess import prepare
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.inference.decide import windows
from isanet_zoo.inference.predictor import READ_AHEAD, Predictor, predict
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.lookup import get_weights
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.zoo import create_model
from tests import reference
from tests.conftest import TINY_NETWORK, TinyZoo

Pixels = NDArray[np.uint8]


def make_picture(height: int, width: int, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]


def pixels_of(picture: Pixels) -> Tensor:
    return torch.from_numpy(picture.transpose(2, 0, 1)[None].copy())  # (1, 3, H, W)


def normalised(picture: Pixels) -> Tensor:
    config = Preprocess()
    values = (picture - np.array(config.mean)) / np.array(config.std)
    return torch.from_numpy(values.transpose(2, 0, 1)[None].astype(np.float32))


@pytest.fixture(scope="module")
def model() -> ISANet:
    """A small network that gives each of its five classes a share of a picture."""
    views = torch.cat([normalised(make_picture(64, 64, seed)) for seed in range(4)])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = ISANet("test_resnet", num_classes=5, head=TINY_NETWORK.head).train()
        for _ in range(10):
            network(views)  # the norms learn their statistics
        network.eval().get_parameter("head.classifier.weight").mul_(20)
        means = network.forward_logits(views).mean((0, 2, 3))
        network.get_parameter("head.classifier.bias").sub_(means)
    return network


def upscaled(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def assert_agrees(segmentation: Segmentation, scores: Tensor) -> None:
    """Compare labels wherever two classes are not all but equal, and probabilities everywhere."""
    best = scores[0].topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-3).numpy()
    expected = scores[0].argmax(0).numpy()
    assert clear.mean() > 0.95
    assert len(np.unique(expected)) >= 3, "a map of one class shows nothing"
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
    def network(self, zoo: None) -> ISANet:
        return create_model(self.NAME, pretrained=True)

    def test_labels_and_logits_are_upstreams(self, network: ISANet) -> None:
        golden = reference.golden(f"e2e_{self.NAME}")
        picture = reference.make_picture("img375x500", block=40)
        with torch.inference_mode():
            logits = network.forward_logits(get_weights(self.NAME).transforms()(picture))
        assert logits.shape == tuple(golden["logits8_shape"])
        crop = logits[0, :, :16, :16].numpy()
        np.testing.assert_allclose(crop, golden["logits8_crop"], rtol=0, atol=1e-5)

        labels = one(predict(network, picture)).labels
        height, width = labels.shape
        close = np.unpackbits(golden["low_margin_mask"])[: height * width].astype(bool)
        differs = labels != golden["pred"]
        assert close.mean() < 0.01
        assert len(np.unique(golden["pred"])) >= 3
        assert not differs[~close.reshape(height, width)].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_labels_of_the_cpu(model: ISANet) -> None:
    picture = make_picture(150, 203)
    here = one(predict(model, picture, confidence=True))
    there = one(predict(model, picture, confidence=True, device="cuda"))
    assert (here.labels == there.labels).mean() > 0.999
    assert here.confidence is not None
    assert there.confidence is not None
    np.testing.assert_allclose(here.confidence, there.confidence, atol=5e-3)
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_graphs_give_what_the_first_run_gives(model: ISANet) -> None:
    """The first picture of a size runs eagerly, the second is captured, the third replayed."""
    pictures = [make_picture(*size, seed) for seed in range(4) for size in ((96, 128), (150, 203))]
    predictor = Predictor(model, device="cuda", probabilities=True)
    for picture in pictures:
        fresh = one(Predictor(model, device="cuda", probabilities=True)(picture))
        assert_same(one(predictor(picture)), fresh)
    with ThreadPoolExecutor(4) as pool:
        for ours, picture in zip(pool.map(predictor, pictures), pictures, strict=True):
            assert_same(one(ours), one(predictor(picture)))


class TestOptions:
    def test_one_picture(self, model: ISANet) -> None:
        picture = make_picture(150, 203)
        with torch.no_grad():
            scores = upscaled(model.forward_logits(normalised(picture)), (150, 203))
        assert_agrees(one(predict(model, picture, probabilities=True)), scores)

    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("scales", [(1.0,), (0.5,), (0.5, 1.0, 1.75)])
    def test_scales_and_mirroring_average_logits(
        self, model: ISANet, scales: tuple[float, ...], flip: bool
    ) -> None:
        picture = make_picture(150, 203)
        views = []
        with torch.no_grad():
            for scale in scales:
                images = F.interpolate(
                    normalised(picture), scale_factor=scale, mode="bilinear", align_corners=False
                )
                views.append(upscaled(model.forward_logits(images), (150, 203)))
                if flip:
                    mirrored = model.forward_logits(images.flip(3))
                    views.append(upscaled(mirrored, (150, 203)).flip(3))
        segmentation = one(predict(model, picture, scales=scales, flip=flip, probabilities=True))
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
        picture = make_picture(150, 203)
        images = normalised(picture)
        total, count = torch.zeros(1, 5, 150, 203), torch.zeros(150, 203)
        for top, left, height, width in windows((150, 203), side, stride):
            bottom, right = top + height, left + width
            with torch.no_grad():
                logits = model.forward_logits(images[:, :, top:bottom, left:right])
            total[:, :, top:bottom, left:right] += upscaled(logits, (height, width))
            count[top:bottom, left:right] += 1
        segmentation = predict(
            model, picture, tile=tile, overlap=overlap, batch_size=batch_size, probabilities=True
        )
        assert_agrees(one(segmentation), total / count)

    def test_pictures_are_resized_unless_told_otherwise(self, model: ISANet) -> None:
        picture = make_picture(150, 203)
        resizing = copy.deepcopy(model)
        resizing.preprocess = Preprocess(resize=(256, 120))
        with torch.no_grad():
            scores = model.forward_logits(prepare(pixels_of(picture), resizing.preprocess))
        resized = one(predict(resizing, picture, probabilities=True))
        assert_agrees(resized, upscaled(scores, (150, 203)))
        whole = one(predict(resizing, picture, resize=False))
        assert_same(whole, one(predict(model, picture)))
        assert not np.array_equal(whole.labels, resized.labels)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_decided_in_float32(self, model: ISANet, dtype: torch.dtype) -> None:
        picture = make_picture(150, 203)
        with torch.no_grad():
            exact = upscaled(model.forward_logits(normalised(picture)), (150, 203)).softmax(1)[0]
        seen: list[torch.dtype] = []
        predictor = Predictor(model, dtype=dtype, probabilities=True)
        for part in (predictor.network.head.fuse, predictor.network.head.classifier):
            part.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        segmentation = one(predictor(picture))
        assert seen == [dtype, torch.float32]
        assert segmentation.probabilities is not None
        error = np.abs(segmentation.probabilities - exact.numpy())
        assert 1e-5 < error.max() < 0.2
        assert error.mean() < 0.02

    @pytest.mark.parametrize("native", [False, True])
    def test_auto_is_bfloat16_where_the_hardware_has_it(
        self, model: ISANet, native: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda: native, raising=False)
        predictor = Predictor(model, dtype="auto")
        assert predictor.dtype == (torch.bfloat16 if native else torch.float32)

    def test_confidence_is_the_largest_probability(self, model: ISANet) -> None:
        picture = make_picture(100, 130)
        both = one(predict(model, picture, confidence=True, probabilities=True))
        assert both.confidence is not None
        assert both.probabilities is not None
        assert np.array_equal(both.confidence, both.probabilities.max(0))
        assert np.array_equal(both.labels, both.probabilities.argmax(0))
        np.testing.assert_allclose(both.probabilities.sum(0), 1, rtol=0, atol=1e-6)
        neither = one(predict(model, picture))
        assert (neither.confidence, neither.probabilities) == (None, None)

    def test_compile_runs_the_compiled_network(
        self, model: ISANet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiled: list[Callable[..., Tensor]] = []

        def compile_(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
            compiled.append(forward)
            return lambda images: -forward(images)

        monkeypatch.setattr(torch, "compile", compile_)
        picture = make_picture(60, 80)
        segmentation = one(Predictor(model, compile=True, probabilities=True)(picture))
        with torch.no_grad():
            scores = upscaled(-model.forward_logits(normalised(picture)), (60, 80))
        assert len(compiled) == 1
        assert_agrees(segmentation, scores)

    def test_numpy_s_numbers_are_numbers(self, model: ISANet) -> None:
        numbers: dict[str, Any] = {"batch_size": np.int64(2), "tile": np.int64(64)}
        predictor = Predictor(model, **numbers | {"overlap": np.float32(0.5)})
        assert (predictor.batch_size, predictor.grid) == (2, ((64, 64), (32, 32)))

    def test_progress_that_cannot_be_called_is_refused_at_once(self, model: ISANet) -> None:
        with pytest.raises(InputError, match="progress is True"):
            predict(model, make_picture(20, 30), progress=True)  # type: ignore[arg-type]

    def test_all_doors_take_the_same_options(self) -> None:
        def options(door: Callable[..., Any], *others: str) -> dict[str, inspect.Parameter]:
            parameters = inspect.signature(door).parameters
            return {
                name: parameter
                for name, parameter in parameters.items()
                if parameter.kind is parameter.KEYWORD_ONLY and name not in others
            }

        assert options(Predictor, "compile") == options(predict, "progress")

    @pytest.mark.parametrize(
        ("options", "value"),
        [
            ({"batch_size": 0}, "0"),
            ({"batch_size": 1.5}, "1.5"),
            ({"scales": ()}, "()"),
            ({"scales": (1.0, 0.0)}, "(1.0, 0.0)"),
            ({"scales": (1.0, -2.0)}, "-2.0"),
            ({"scales": (float("nan"),)}, "nan"),
            ({"scales": (float("inf"),)}, "inf"),
            ({"scales": 1.5}, "1.5"),
            ({"overlap": 1.0}, "1.0"),
            ({"overlap": -0.25}, "-0.25"),
            ({"overlap": float("nan")}, "nan"),
            ({"tile": 0}, "0"),
            ({"tile": (64, -1)}, "-1"),
            ({"tile": (64,)}, "(64,)"),
            ({"tile": (1, 2, 3)}, "(1, 2, 3)"),
            ({"tile": 64.5}, "64.5"),
            ({"tile": True}, "True"),
            ({"scales": ("1",)}, "'1'"),
            ({"overlap": "x"}, "'x'"),
            ({"dtype": torch.float64}, "torch.float64"),
            ({"dtype": "bfloat16"}, "bfloat16"),
            ({"device": "gpu"}, "gpu"),
        ],
        ids=str,
    )
    def test_a_bad_option_is_named_with_its_value(
        self, model: ISANet, options: dict[str, Any], value: str
    ) -> None:
        (name,) = options
        with pytest.raises(InputError, match=f"{name}.*{re.escape(value)}"):
            Predictor(model, **options)

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
    def test_a_network_that_does_not_fit_is_refused(
        self, refused: Callable[[], Any], reason: str
    ) -> None:
        with pytest.raises(InputError, match=reason):
            predict(refused(), make_picture(8, 8))


class TestManyPictures:
    SIZES = ((100, 130), (64, 80), (100, 130), (130, 100), (64, 80), (100, 130), (8, 9))

    @pytest.fixture
    def pictures(self) -> list[Pixels]:
        return [make_picture(*size, seed=number) for number, size in enumerate(self.SIZES)]

    @pytest.mark.parametrize("batch_size", [1, 2, 16])
    @pytest.mark.parametrize("tile", [None, 48])
    def test_a_batch_of_mixed_sizes_gives_what_the_pictures_give_alone(
        self, model: ISANet, pictures: list[Pixels], batch_size: int, tile: int | None
    ) -> None:
        alone = [one(predict(model, picture, tile=tile, confidence=True)) for picture in pictures]
        together = predict(model, pictures, batch_size=batch_size, tile=tile, confidence=True)
        for ours, theirs in zip(several(together), alone, strict=True):
            assert_same(ours, theirs)

    def test_pictures_of_one_size_share_a_batch(
        self, model: ISANet, pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[int, ...]] = []
        forward = ISANet.forward_logits

        def watched(self: ISANet, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            return forward(self, images)

        monkeypatch.setattr(ISANet, "forward_logits", watched)
        predict(model, pictures, batch_size=2)
        assert sorted(seen) == [
            (1, 3, 8, 9),
            (1, 3, 100, 130),
            (1, 3, 130, 100),
            (2, 3, 64, 80),
            (2, 3, 100, 130),
        ]

    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
    def test_very_small_and_thin_pictures_are_segmented(
        self, model: ISANet, size: tuple[int, int]
    ) -> None:
        assert one(predict(model, make_picture(*size))).labels.shape == size

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_a_stream_reads_no_further_than_it_must(self, model: ISANet, batch_size: int) -> None:
        read = 0

        def frames() -> Iterator[Pixels]:
            nonlocal read
            for number in range(20):
                read += 1
                yield make_picture(40, 48, seed=number)

        stream = Predictor(model, batch_size=batch_size).stream(frames())
        assert read == 0
        held = 1 if batch_size == 1 else READ_AHEAD * batch_size
        for number, _ in enumerate(itertools.islice(stream, 10)):
            assert read == (number // held + 1) * held
        assert sum(1 for _ in stream) == 10

    def test_a_folder_gives_its_pictures_in_order_with_their_paths(
        self, model: ISANet, pictures: list[Pixels], tmp_path: Path
    ) -> None:
        paths = [tmp_path / f"{number}.png" for number in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            Image.fromarray(picture).save(path)
        results = several(predict(model, tmp_path, batch_size=2))
        assert [result.path for result in results] == paths
        for result, picture in zip(results, pictures, strict=True):
            assert np.array_equal(result.labels, one(predict(model, picture)).labels)

    def test_one_bad_picture_among_many_is_named(self, model: ISANet, tmp_path: Path) -> None:
        bad = tmp_path / "bad.jpg"
        bad.write_text("no picture")
        with pytest.raises(InputError, match=r"bad\.jpg"):
            predict(model, [make_picture(40, 48), bad])

    @pytest.mark.parametrize("images", [7, None])
    def test_what_is_no_picture_is_refused(self, model: ISANet, images: Any) -> None:
        with pytest.raises(InputError, match=type(images).__name__):
            predict(model, images)

    def test_no_pictures_give_no_results(self, model: ISANet) -> None:
        assert predict(model, []) == []

    def test_progress_counts_pictures(
        self, model: ISANet, pictures: list[Pixels], tmp_path: Path
    ) -> None:
        Image.fromarray(pictures[1]).save(tmp_path / "one.png")
        for images, total, batch_size in (
            (pictures[:4], 4, 1),
            (pictures[:4], 4, 3),
            (iter(pictures[:4]), None, 2),
            (tmp_path, 1, 1),
            (pictures[1], 1, 1),
        ):
            seen: list[tuple[int, int | None]] = []
            predict(
                model,
                images,
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


class TestLeavesTheWorldAlone:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_network_stays_as_it_was(
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
        predict(model, make_picture(60, 80), flip=True, dtype=torch.bfloat16)
        assert state() == before
        assert all(torch.equal(values[key], now) for key, now in model.state_dict().items())

    def test_a_predictor_keeps_what_it_was_built_from(self, model: ISANet) -> None:
        picture, model = make_picture(60, 80), copy.deepcopy(model)
        predictor = Predictor(model, probabilities=True)
        before = one(predictor(picture))
        with torch.no_grad():
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                tensor.zero_()
        assert_same(one(predictor(picture)), before)

    def test_a_bfloat16_network_computes_in_float32(self, model: ISANet) -> None:
        picture = make_picture(60, 80)
        half = copy.deepcopy(model).bfloat16()
        expected = one(predict(copy.deepcopy(half).float(), picture, confidence=True))
        assert_same(one(predict(half, picture, confidence=True)), expected)

    def test_a_network_in_training_predicts_as_in_evaluation(self, model: ISANet) -> None:
        picture = make_picture(60, 80)
        trained = copy.deepcopy(model).train()
        assert_same(one(predict(trained, picture)), one(predict(model, picture)))

    def test_torchs_global_state_stays_as_it_was(self, model: ISANet) -> None:
        before = global_state()
        predict(model, [make_picture(60, 80)] * 3, batch_size=2, dtype=torch.bfloat16, tile=48)
        assert global_state() == before

    def test_an_outer_autocast_changes_nothing(self, model: ISANet) -> None:
        picture = make_picture(60, 80)
        expected = one(predict(model, picture, probabilities=True))
        with torch.autocast("cpu", torch.bfloat16):
            predictor = Predictor(model, probabilities=True)
            assert_same(one(predictor(picture)), expected)
        assert_same(one(predictor(picture)), expected)

    def test_threads_give_what_one_gives(self, model: ISANet) -> None:
        predictor = Predictor(model, batch_size=2, flip=True, confidence=True)
        batches = [
            [make_picture(40 + 8 * size, 60, seed) for size in (0, 1, 0)] for seed in range(12)
        ]
        alone = [several(predictor(batch)) for batch in batches]
        with ThreadPoolExecutor(6) as pool:
            together = [several(result) for result in pool.map(predictor, batches)]
        for ours, theirs in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
            assert_same(ours, theirs)


class TestByName:
    def test_a_name_is_enough(self, tiny_zoo: TinyZoo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
        picture = make_picture(60, 80)
        segmentation = one(predict("isanet_tiny", picture, confidence=True))
        assert segmentation.label_set == tiny_zoo.weights.label_set
        network = create_model("isanet_tiny", pretrained=True)
        assert_same(segmentation, one(predict(network, picture, confidence=True)))
        by_name = Predictor("isanet_tiny", confidence=True)
        assert_same(segmentation, one(by_name(picture)))
