"""The weights of the default model: complete, described, and good on a photo of a street."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import isanet_zoo
from isanet_zoo.cache import entries
from isanet_zoo.commands.main import main
from isanet_zoo.commands.predict import BUILT_IN_NOTE
from isanet_zoo.errors import EnvironmentProblem, IntegrityError
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights.checkpoints import load_checkpoint
from isanet_zoo.weights.description import read_description
from isanet_zoo.weights.tensors import state_digest

NAME = "isanet_efficientnet_lite0os8_camvid"
WEIGHTS = isanet_zoo.get_weights(NAME)
STREET = Path(isanet_zoo.__file__).parents[1] / "examples" / "street.jpg"


def test_file_agrees_with_the_manifest_and_is_small() -> None:
    path = isanet_zoo.download(NAME)
    assert path == WEIGHTS.packaged == WEIGHTS.path()
    assert path.stat().st_size == WEIGHTS.size
    assert path.stat().st_size <= 10e6
    assert WEIGHTS.trust == "verified"
    state = load_checkpoint(path, WEIGHTS.network, exact=True).state
    assert state_digest(state) == WEIGHTS.state_digest
    assert entries() == []  # nothing was copied


def test_description_of_the_file_agrees_with_the_manifest() -> None:
    card = read_description(WEIGHTS.path())
    assert card is not None
    assert card.recipe == WEIGHTS.training
    assert card.label_set == WEIGHTS.label_set
    assert card.network == WEIGHTS.network
    assert card.preprocess == WEIGHTS.preprocess


def test_distribution_has_notice_and_terms() -> None:
    notice = (WEIGHTS.path().parent / "NOTICE.md").read_text("utf-8")
    for text in (notice, WEIGHTS.licence.weights, BUILT_IN_NOTE):
        assert "CC BY-NC 4.0" in text
        assert "personal and research use" in text.replace("**", "").replace("\n", " ")
    assert "Brostow" in notice
    assert "Brostow" in WEIGHTS.licence.dataset


def test_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "camvid" / "isanet_zoo_camvid" / WEIGHTS.filename
    damaged.parent.mkdir(parents=True)
    content = bytearray(WEIGHTS.path().read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    monkeypatch.setattr(Weights, "packaged", damaged)
    with pytest.raises(IntegrityError, match=r"sha256 .* reinstall isanet-zoo-camvid"):
        isanet_zoo.create_model(NAME, pretrained=True)


def test_missing_distribution_is_named_with_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "camvid" / "isanet_zoo_camvid" / WEIGHTS.filename
    monkeypatch.setattr(Weights, "packaged", missing)
    with pytest.raises(EnvironmentProblem, match=r"pip install isanet-zoo-camvid.*\./camvid"):
        isanet_zoo.create_model(NAME, pretrained=True)
    assert main(["predict", str(STREET), "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "./camvid" in error
    assert "isanet-zoo list" in error


def test_factory_loads_and_adapts_the_weights() -> None:
    model = isanet_zoo.isanet_efficientnet_lite0os8_camvid(pretrained=True)
    assert sum(p.numel() for p in model.parameters()) == WEIGHTS.parameters.without_aux
    assert model.load_report.trust == "verified"
    assert model.classes[3] == "Road"
    other = isanet_zoo.isanet_efficientnet_lite0os8_camvid(
        pretrained=True, num_classes=3, aux_loss=True, in_chans=4
    )
    assert other.load_report.fresh
    assert other.load_report.adapted == ("backbone.conv_stem.weight",)


@pytest.fixture(scope="module")
def street() -> isanet_zoo.Segmentation:
    """The model's segmentation of the photo."""
    segmentation = isanet_zoo.predict(NAME, STREET)
    assert isinstance(segmentation, isanet_zoo.Segmentation)
    return segmentation


def test_prediction_of_a_street_finds_sky_buildings_and_ground(
    street: isanet_zoo.Segmentation,
) -> None:
    assert street.labels.shape == (563, 751)

    def fraction(area: tuple[slice, slice], *names: str) -> float:
        return float(np.mean([street.mask(name)[area].mean() for name in names]) * len(names))

    assert fraction((slice(0, 60), slice(220, 700)), "Sky") > 0.95
    assert fraction((slice(250, 380), slice(0, 100)), "Building") > 0.9
    assert fraction((slice(150, 250), slice(550, 700)), "Building") > 0.9
    assert fraction((slice(480, 563), slice(100, 500)), "Road", "Pavement") > 0.9


def test_overlay_of_the_readme_is_that_of_the_street(street: isanet_zoo.Segmentation) -> None:
    with Image.open(STREET.with_name("street_overlay.jpg")) as kept:
        difference = np.abs(np.asarray(kept, float) - np.asarray(street.overlay(), float))
    assert difference.mean() < 3  # of 255; lost by JPEG


@pytest.mark.usefixtures("small_inputs")
def test_predict_command_without_a_model_names_the_built_in_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(STREET), "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert [Path(line).name for line in out.split()] == [
        "street.labels.png",
        "street.overlay.png",
    ]
    for word in (NAME, "streets", "CC BY-NC 4.0", "isanet-zoo list", "verified"):
        assert word in err
    shutil.rmtree(tmp_path / "out")
    assert main(["predict", str(STREET), "-m", NAME, "-o", str(tmp_path / "out")]) == 0
    assert "isanet-zoo list" not in capsys.readouterr().err


def test_manifest_has_the_measured_metrics() -> None:
    test, val = WEIGHTS.metrics
    assert (test.split, val.split) == ("CamVid test", "CamVid val")
    for metric in (test, val):
        assert metric.reported_by == "isanet_zoo"
        assert metric.reproduced == metric.value
