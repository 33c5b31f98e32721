"""Model cards of saved models."""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt

from isanet_zoo import ISANet, create_model, get_weights, save_model
from isanet_zoo.hub.card import render_mirror
from isanet_zoo.manifest.lookup import load_manifest
from isanet_zoo.weights.description import licence_id
from isanet_zoo.weights.tensors import state_digest
from tests.conftest import TinyZoo
from tests.hub import stand_in as stand_in
from tests.hub.models import BUILT_IN, IMAGE, MEASURED, finetuned, random_model, read_config


def metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata of a model card."""
    text = (folder / "README.md").read_text("utf-8")
    loaded: dict[str, Any] = stand_in.yaml.safe_load(text.split("---\n")[1])
    return loaded


def test_card_of_published_weights_has_the_reported_metrics(tmp_path: Path) -> None:
    create_model(BUILT_IN, pretrained=True).save_pretrained(tmp_path)
    weights = get_weights(BUILT_IN)
    found = metadata(tmp_path)
    assert found["library_name"] == "isanet_zoo"
    assert found["pipeline_tag"] == "image-segmentation"
    assert found["license"] == "cc-by-nc-4.0"
    assert found["datasets"] == ["camvid"]
    (index,) = found["model-index"]
    results = {result["dataset"]["name"]: result["metrics"] for result in index["results"]}
    assert results.keys() == {"CamVid test", "CamVid val"}
    ((metric,), _) = results.values()
    assert (metric["value"], metric["verified"]) == (weights.miou, False)
    assert metric["args"]["reported_by"] == "isanet_zoo"
    text = (tmp_path / "README.md").read_text("utf-8")
    for fact in (weights.sha256, weights.licence.dataset, "Brostow", "huang2019isa", "Bicyclist"):
        assert str(fact) in text
    assert "reproduced" not in text


def test_card_names_the_source_of_reported_metrics(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model = create_model("isanet_tiny", pretrained=True)
    model.save_pretrained(tmp_path)
    text, found = (tmp_path / "README.md").read_text("utf-8"), metadata(tmp_path)
    (result,) = found["model-index"][0]["results"]
    config_url = tiny_zoo.weights.links.config
    assert result["source"] == {"name": "sssegmentation", "url": config_url}
    assert result["metrics"][0]["verified"] is False
    assert "| mIoU | 76.99 |" in text
    assert "| sssegmentation | no |" in text
    sha256 = hashlib.sha256(tiny_zoo.published.read_bytes()).hexdigest()
    assert f"- Published file: {tiny_zoo.weights.sources[0]}\n- Its sha256: `{sha256}`" in text
    assert state_digest(model.state_dict()) in text


def test_card_of_a_fine_tuned_model_has_no_reported_metrics(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    same = create_model("isanet_tiny", pretrained=True)
    with torch.no_grad():
        next(same.parameters()).mul_(1.001)
    for model, folder in ((finetuned(), tmp_path / "a"), (same, tmp_path / "b")):
        model.save_pretrained(folder, dataset="Fruit train")
        text = (folder / "README.md").read_text("utf-8")
        assert "model-index" not in metadata(folder)
        assert "76.99" not in text
        assert "Made from the published weights `isanet_tiny`, trained further on Fruit" in text
        assert metadata(folder)["license"] == "apache-2.0"  # still that of what it was made from
        origin = ISANet.from_pretrained(folder).origin
        assert origin is not None
        assert origin.provenance is not None
        assert not origin.provenance.unchanged


def test_history_of_a_saved_model_is_kept_until_it_is_trained(tmp_path: Path) -> None:
    random_model().save_pretrained(
        tmp_path / "1", dataset="Fruit train", metrics=[MEASURED], licence="mit"
    )
    model = ISANet.from_pretrained(tmp_path / "1")
    model.save_pretrained(tmp_path / "2")
    first, second = (read_config(tmp_path / n) for n in "12")
    assert first == second
    assert first.metrics == (MEASURED,)
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)
    model.save_pretrained(tmp_path / "3")
    third = read_config(tmp_path / "3")
    assert (third.metrics, third.dataset, third.licence) == ((), "", "mit")


def test_description_of_a_weight_file_goes_into_the_config(
    tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    recipe = tiny_zoo.weights.recipe
    file = tmp_path / "best.safetensors"
    save_model(random_model(), file, dataset="Fruit train", recipe=recipe, metrics=[MEASURED])
    create_model("isanet_tiny", weights=file, aux_loss=True).save_pretrained(tmp_path / "saved")
    config = read_config(tmp_path / "saved")
    assert (config.dataset, config.recipe) == ("Fruit train", recipe)
    assert config.metrics == (MEASURED,)
    assert config.provenance is None


def test_mirror_card_reproduces_the_licence_that_demands_it() -> None:
    names = [BUILT_IN, "isanet_resnet18os8_ade20k"]
    records = [replace(get_weights(name), sha256="0" * 64) for name in names]
    assert "must reproduce the above copyright notice" in render_mirror(records)
    assert "copyright notice" not in render_mirror(records[:1])


def test_card_shows_use_preprocessing_and_every_class(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "fruits", metrics=[MEASURED])
    text = (tmp_path / "fruits" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) == 5
    assert 'from_pretrained("fruits")' in code
    assert "fit 96 pixels on the longer and 64 on the shorter side" in text
    assert "BGR" in text
    assert "mean 1, 2, 3, std 9, 8, 7" in text
    assert "| 3 | plum \\| sloe | `#0000ff` | 30 |" in text
    assert "labelled 254 have no class" in text
    assert "These weights: not stated" in text
    assert "license" not in metadata(tmp_path / "fruits")


def test_code_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(IMAGE, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    for name, in_chans in (("three", 3), ("four", 4)):
        random_model(in_chans).save_pretrained(name)
        text = Path(name, "README.md").read_text("utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        exec(code, {})


@pytest.mark.parametrize("name", list(load_manifest()))
def test_licence_of_every_published_weight_has_an_abbreviation(name: str) -> None:
    terms = get_weights(name).licence.weights
    expected = {"A": "apache-2.0", "C": "cc-by-nc-4.0"}.get(terms[0], "other")
    assert licence_id(terms) == expected


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "[a](http://evil)",
    "**bold** `code`",
    "a | b",
    "&lt;b&gt;",
]


def rendered(markdown: str) -> str:
    """Return Markdown as HTML, converted by a library that the package does not use."""
    html: str = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    return html


def visible(html: str) -> str:
    """Return the text of a page, and check that it has no elements but those of the template."""

    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.tags, self.links = "", set[str](), list[str | None]()

        def handle_data(self, data: str) -> None:
            self.text += data

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.add(tag)
            self.links += [value for key, value in attrs if key == "href"]

    page = Page()
    page.feed(html)
    assert page.tags <= {*("h1", "h2", "p", "a", "em", "code", "pre", "ul", "li")} | {
        *("table", "thead", "tbody", "tr", "th", "td")
    }
    assert page.links == ["https://arxiv.org/abs/1907.12273"]
    return page.text


def test_card_shows_hostile_text_as_it_is(tmp_path: Path) -> None:
    model = random_model()
    model.label_set = replace(model.label_set, names=tuple(HOSTILE), title=HOSTILE[0])
    metric = replace(MEASURED, protocol=HOSTILE[1], reported_by=HOSTILE[0], split=HOSTILE[2])
    folder = tmp_path / "<b>bold"
    model.save_pretrained(folder, dataset=HOSTILE[0], licence=HOSTILE[0], metrics=[metric])
    text = (folder / "README.md").read_text("utf-8")
    shown = visible(rendered(text.split("---\n", 2)[2]))
    for words in (*HOSTILE, "<b>bold"):
        assert words in shown
    assert metadata(folder)["license"] == HOSTILE[0]


@pytest.mark.parametrize("name", ["a\x1b[2J\nb", "\udcff", '"); import os', "```", "---", "'\\"])
def test_card_of_a_folder_with_a_hostile_name_shows_it_escaped(name: str, tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / name)
    text = (tmp_path / name / "README.md").read_text("utf-8")
    assert "\x1b" not in text
    assert isinstance(metadata(tmp_path / name), dict)
    (code,) = re.findall(r"```python\n(.*?)\n```\n", text, re.DOTALL)
    (loaded,) = re.findall(r"from_pretrained\((.*)\)", code)
    assert ast.literal_eval(loaded) == name
