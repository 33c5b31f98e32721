"""Tests of one training step, compared with the same step written without `Trainer`."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from isanet_zoo import CheckpointError, InputError, ISANet, Trainer
from tests.learning import tiny
from tests.learning.tiny import RECIPE


def snapshot(model: ISANet) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def assert_close(
    left: Mapping[str, Any], right: Mapping[str, Any], rtol: float = 1e-4, atol: float = 1e-6
) -> None:
    torch.testing.assert_close(dict(left), dict(right), rtol=rtol, atol=atol)


def test_steps_equal_torch_s_sgd() -> None:
    model, twin = tiny.network(), tiny.network().train()
    twin.to(memory_format=torch.channels_last)
    trainer = Trainer(model, RECIPE, steps=3)
    named = list(twin.named_parameters())
    optimizer = torch.optim.SGD(
        [
            {"params": [value for name, value in named if name.startswith("backbone.")]},
            {"params": [value for name, value in named if not name.startswith("backbone.")]},
        ],
        lr=RECIPE.lr,
        momentum=RECIPE.momentum,
        weight_decay=RECIPE.weight_decay,
    )
    for step in range(2):
        images, target = tiny.batch(step)
        lr = (RECIPE.lr - RECIPE.min_lr) * (1 - step / 3) ** RECIPE.power + RECIPE.min_lr
        optimizer.param_groups[0]["lr"] = lr
        optimizer.param_groups[1]["lr"] = lr * RECIPE.head_multiplier
        optimizer.zero_grad()
        out, aux = twin(images.to(memory_format=torch.channels_last))
        expected = F.cross_entropy(out, target, ignore_index=255)
        expected = expected + RECIPE.aux_weight * F.cross_entropy(aux, target, ignore_index=255)
        expected.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss = trainer.train_step(images, target)
        torch.testing.assert_close(loss, expected.detach())
        assert not loss.requires_grad
    assert_close(model.state_dict(), twin.state_dict())
    assert trainer.step == 2
    assert trainer.result is model


@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 1.8])])
def test_gradients_do_not_depend_on_the_number_of_chunks(weights: Tensor | None) -> None:
    gradients, losses = [], []
    for accumulate in (1, 2, 3, 4):
        model = tiny.network().freeze_norm()
        trainer = Trainer(model, RECIPE, steps=9, class_weights=weights, accumulate=accumulate)
        losses.append(trainer.train_step(*tiny.batch()))
        gradients.append(
            {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        )
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0])
        assert_close(gradient, gradients[0])


def test_frozen_parts_are_unchanged_and_all_others_are_trained() -> None:
    model = tiny.network()
    before = snapshot(model)
    frozen = ("backbone.layer1", "head.attention.long_range")
    trainer = Trainer(model, replace(RECIPE, frozen=frozen), steps=9)
    trainer.train_step(*tiny.batch())
    trainer.train_step(*tiny.batch(1))
    after = model.state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert same == {key for key in before if key.startswith(tuple(f"{name}." for name in frozen))}
    with pytest.raises(InputError, match=r"backbone\.layer9"):
        Trainer(tiny.network(), replace(RECIPE, frozen=("backbone.layer9",)), steps=9)


def test_bfloat16_is_close_to_float32_and_keeps_float32_weights() -> None:
    models = [tiny.network(), tiny.network()]
    before = snapshot(models[0])
    low = replace(RECIPE, precision="bfloat16")
    trainers = [
        Trainer(model, recipe, steps=9) for model, recipe in zip(models, (low, RECIPE), strict=True)
    ]
    losses = [trainer.train_step(*tiny.batch()) for trainer in trainers]
    assert losses[0].dtype == torch.float32
    assert losses[0] != losses[1]  # the arithmetic did differ
    torch.testing.assert_close(losses[0], losses[1], rtol=0.03, atol=0)
    name = "head.classifier.weight"
    small, full = (model.state_dict()[name] - before[name] for model in models)
    assert small.dtype == torch.float32
    assert F.cosine_similarity(small.flatten(), full.flatten(), dim=0) > 0.98


def test_float16_trains_after_its_scale_has_decreased() -> None:
    model = tiny.network()
    before = snapshot(model)
    trainer = Trainer(model, replace(RECIPE, precision="float16"), steps=8)
    losses = [trainer.train_step(*tiny.batch()) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert not torch.equal(model.head.classifier.weight, before["head.classifier.weight"])


def test_learning_rate_stays_at_its_minimum_after_the_last_step() -> None:
    trainer = Trainer(tiny.network(), RECIPE, steps=1)
    for _ in range(3):
        trainer.train_step(*tiny.batch())
        assert trainer.lr == pytest.approx(RECIPE.min_lr)


def test_class_weights_are_used_in_the_loss() -> None:
    weights = torch.tensor([0.1, 1.0, 1.9])
    images, target = tiny.batch()
    target[target == 0] = 1  # the mean weight of the present classes is not 1
    model = tiny.network()
    out, aux = copy.deepcopy(model).train()(images)
    expected = F.cross_entropy(out, target, weights, ignore_index=255)
    expected = expected + RECIPE.aux_weight * F.cross_entropy(
        aux, target, weights, ignore_index=255
    )
    loss = Trainer(model, RECIPE, steps=9, class_weights=weights).train_step(images, target)
    torch.testing.assert_close(loss, expected.detach())


def test_batch_of_ignored_pixels_changes_running_statistics_only() -> None:
    model = tiny.network()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    images, target = tiny.batch()
    recipe = replace(RECIPE, weight_decay=0.0)
    assert Trainer(model, recipe, steps=9).train_step(images, target.fill_(255)) == 0
    tiny.assert_same(dict(model.named_parameters()), before)


def test_result_is_the_moving_average_of_the_steps() -> None:
    model = tiny.network()
    trainer = Trainer(model, replace(RECIPE, ema=0.3), steps=9)
    expected: dict[str, Tensor] = {}
    for step in range(5):
        trainer.train_step(*tiny.batch(step))
        new = {key: tensor.double() for key, tensor in snapshot(model).items()}
        decay = min(0.3, (1 + step) / (10 + step)) if step else 0.0
        expected = {
            key: decay * expected.get(key, value) + (1 - decay) * value
            for key, value in new.items()
        }
        counts = [key for key in new if key.endswith("num_batches_tracked")]
        expected |= {key: new[key] for key in counts}
    result = trainer.result
    assert result is not model
    assert isinstance(result, ISANet)
    assert result.label_set == model.label_set
    assert_close({key: value.double() for key, value in result.state_dict().items()}, expected)
    differ = (result.head.classifier.weight - model.head.classifier.weight).abs().max()
    assert differ > 1e-5


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_restored_trainer_continues_identically(
    optimizer: Literal["sgd", "adamw"],
) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, lr=0.002, ema=0.9)
    ours = Trainer(tiny.network(dropout=0.5), recipe, steps=4, seed=3)
    for step in range(2):
        ours.train_step(*tiny.batch(step))
    theirs = Trainer(tiny.network(dropout=0.5, seed=1), recipe, steps=4, seed=3)
    theirs.load_state_dict(through_a_file(ours.state_dict()))
    for step in range(2, 4):
        assert theirs.lr == ours.lr
        assert torch.equal(*(each.train_step(*tiny.batch(step)) for each in (ours, theirs)))
    tiny.assert_same(theirs.model.state_dict(), ours.model.state_dict())
    tiny.assert_same(theirs.result.state_dict(), ours.result.state_dict())
    assert theirs.step == ours.step == 4


def test_dropout_depends_on_seed_and_step_and_not_on_the_global_generator() -> None:
    def losses(seed: int, global_seed: int) -> list[float]:
        trainer = Trainer(tiny.network(dropout=0.5).freeze_norm(), frozen, steps=9, seed=seed)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        losses = [float(trainer.train_step(*tiny.batch())) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        return losses

    frozen = replace(RECIPE, lr=1e-12, min_lr=0.0)  # only dropout makes a difference
    first = losses(0, 1)
    assert first[0] != first[1]
    assert losses(0, 2) == first
    assert losses(1, 1) != first


@given(
    steps=st.integers(1, 4),
    lr=st.floats(1e-4, 0.1),
    fraction=st.floats(0, 1),
    power=st.floats(0, 2),
    multiplier=st.floats(0.5, 10),
)
@settings(max_examples=10, deadline=None)
def test_learning_rate_follows_the_recipe_s_schedule(
    steps: int, lr: float, fraction: float, power: float, multiplier: float
) -> None:
    low = lr * fraction
    recipe = replace(RECIPE, lr=lr, min_lr=low, power=power, head_multiplier=multiplier)
    trainer = Trainer(tiny.network().freeze("backbone.layer1"), recipe, steps=steps)
    images, target = (part[..., :16, :16] for part in tiny.batch(count=1))
    for step in range(steps):
        expected = (lr - low) * (1 - step / steps) ** power + low
        assert trainer.lr == pytest.approx(expected)
        trainer.train_step(images, target)
        rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
        assert rates == pytest.approx({"backbone": expected, "heads": expected * multiplier})
    assert trainer.lr == pytest.approx((lr - low) * 0**power + low)


# States and errors


def test_state_is_a_flat_dict_of_tensors() -> None:
    recipe = replace(RECIPE, optimizer="adamw", ema=0.5, precision="float16")
    trainer = Trainer(tiny.network(), recipe, steps=4)
    for _ in range(4):  # the first ones are skipped, until the scale has decreased
        trainer.train_step(*tiny.batch())
    state = trainer.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    assert {key.partition(".")[0] for key in state} == {
        *("step", "model", "average", "optimizer", "scaler")
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_state_of_another_recipe_is_refused_and_changes_nothing(
    optimizer: Literal["sgd", "adamw"],
) -> None:
    ours = Trainer(tiny.network(), replace(RECIPE, optimizer=optimizer), steps=4)
    ours.train_step(*tiny.batch())
    for change in (
        {"optimizer": {"sgd": "adamw", "adamw": "sgd"}[optimizer]},
        {"ema": 0.5},
        {"precision": "float16"},
        {"frozen": ("backbone.layer1",)},
    ):
        other = replace(RECIPE, **({"optimizer": optimizer} | change))
        theirs = Trainer(tiny.network(seed=1), other, steps=4)
        before = snapshot(theirs.model)
        with pytest.raises(CheckpointError, match=r"my state"):
            theirs.load_state_dict(ours.state_dict(), name="my state")
        tiny.assert_same(snapshot(theirs.model), before)
        assert theirs.step == 0
        assert not theirs.optimizer.state


def test_state_of_a_longer_run_is_refused() -> None:
    ours, theirs = (Trainer(tiny.network(), RECIPE, steps=steps) for steps in (3, 1))
    for _ in range(2):
        ours.train_step(*tiny.batch())
    with pytest.raises(CheckpointError, match="is of step 2; this run has 1 steps"):
        theirs.load_state_dict(ours.state_dict())


def test_single_value_per_channel_is_an_error_with_the_numbers() -> None:
    trainer = Trainer(tiny.network(), replace(RECIPE, batch_size=2), steps=1, accumulate=2)
    images, target = (part[..., :8, :8] for part in tiny.batch(count=2))
    with pytest.raises(InputError, match=r"batch_size 2, crop \[48, 64\] and accumulate 2 leave"):
        trainer.train_step(images, target)


def test_batch_beyond_the_memory_is_an_error_with_the_way_out() -> None:
    trainer = Trainer(tiny.network(), RECIPE, steps=1)
    images = torch.zeros(1).expand(1 << 20, 3, 4096, 4096)  # petabytes, once it is copied
    with pytest.raises(InputError, match=r"out of memory in a step; lower batch_size \(4\)"):
        trainer.train_step(images, torch.zeros(1, dtype=torch.int64).expand(1 << 20, 4096, 4096))


def test_layers_for_cpus_are_restored_by_finish() -> None:
    model = tiny.network(backbone="test_efficientnet")
    kinds = [type(module) for module in model.modules()]
    trainer = Trainer(model, RECIPE, steps=1)
    assert [type(module) for module in model.modules()] != kinds
    trainer.train_step(*tiny.batch())
    assert trainer.finish() is model
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"device": "gpu"}, "device 'gpu' is not available"),
    ],
)
def test_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trainer(tiny.network(), RECIPE, **({"steps": 1} | options))


def test_aux_weight_without_an_auxiliary_head_is_refused() -> None:
    model = ISANet("test_resnet", 3)
    with pytest.raises(InputError, match=r"aux_weight is 0\.4, .* build it with aux_loss=True"):
        Trainer(model, RECIPE, steps=1)
