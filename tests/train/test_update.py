"""One update: the batch against NumPy, the average, the learning rate."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from eco_fast.config import Config, OptimConfig, parse_config
from eco_fast.data.flat import FlatImages, TrainingSet
from eco_fast.data.pixels import bicubic_lr
from eco_fast.data.sampler import Plan, Sampler
from eco_fast.data.source import Patches
from eco_fast.eco.objective import MODES
from eco_fast.errors import UserError
from eco_fast.models import build
from eco_fast.train.batches import Batch, make_batch
from eco_fast.train.learner import Learner
from eco_fast.train.machine import resolve
from eco_fast.train.optim import TorchOptimizer, learning_rate, make_optimizer
from eco_fast.train.parameters import Parameters
from eco_fast.train.update import make_update
from eco_kernels import Judgement, eco_loss_with_grad
from tests.sets import blended

PATCH, BATCH = 10, 6


def _training_set(rng: np.random.Generator, scale: int) -> TrainingSet:
    sizes = [(14, 17), (20, 12), (10, 10)]
    hrs = [rng.integers(0, 256, (h * scale, w * scale, 3), dtype=np.uint8) for h, w in sizes]
    centroids = [rng.integers(0, 256, hr.shape, dtype=np.uint8) for hr in hrs]
    stores = [FlatImages.from_arrays(list(images)) for images in (hrs, centroids)]
    lr_stores = [FlatImages.from_arrays([bicubic_lr(image, scale) for image in images]) for images in (hrs, centroids)]
    return TrainingSet(stores[0], lr_stores[0], scale, stores[1], lr_stores[1])


def _patches(images: FlatImages, plan: Plan, scale: int) -> NDArray[np.float64]:
    """(B, 3, P, P) float64 in [0, 1], by slicing."""
    cut = []
    for i, top, left, orientation in zip(*(t.tolist() for t in plan[:4]), strict=True):
        side = PATCH * scale
        patch = images.image(i)[top * scale : top * scale + side, left * scale : left * scale + side]
        patch = patch[:, ::-1] if orientation & 1 else patch
        patch = patch[::-1] if orientation & 2 else patch
        cut.append((patch.transpose(1, 0, 2) if orientation & 4 else patch).transpose(2, 0, 1))
    return np.stack(cut) / 255.0


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_batch_and_loss_agree_with_float64(rng: np.random.Generator, scale: int, mode: str, alpha: float) -> None:
    images = _training_set(rng, scale)
    plan = Sampler(images.lr.heights, images.lr.widths, scale, PATCH, BATCH, seed=3).plan(2)
    weights, reads = blended(mode, alpha, plan.uniform)
    batch = make_batch(Patches(images.by_kind(), plan, PATCH, scale), weights, reads)
    a_in, a_out = (np.broadcast_to(w.double().numpy(), (BATCH,)).reshape(-1, 1, 1, 1) for w in weights[:2])
    assert images.centroid is not None and images.centroid_lr is not None
    x = a_in * _patches(images.lr, plan, 1) + (1 - a_in) * _patches(images.centroid_lr, plan, 1)
    y = a_out * _patches(images.hr, plan, scale) + (1 - a_out) * _patches(images.centroid, plan, scale)
    np.testing.assert_allclose(batch.x.numpy(), x, atol=1e-6, rtol=0)
    assert batch.x.is_contiguous(memory_format=torch.channels_last)
    sr = torch.from_numpy(rng.random(y.shape, dtype=np.float32))
    loss, _ = eco_loss_with_grad(sr, batch.hr, batch.centroid, batch.alpha, scale_factor=255.0)
    assert loss.item() / 255.0 == pytest.approx(np.abs(sr.double().numpy() - y).mean(), abs=1e-6)


@pytest.mark.parametrize(("alpha", "read"), [(0.0, "centroid"), (1.0, "hr")])
def test_images_of_weight_zero_are_not_read(rng: np.random.Generator, alpha: float, read: str) -> None:
    images = _training_set(rng, 2)
    plan = Sampler(images.lr.heights, images.lr.widths, 2, PATCH, BATCH, seed=3).plan(0)
    batch = make_batch(Patches(images.by_kind(), plan, PATCH, 2), *blended("eco", alpha, plan.uniform))
    assert (batch.hr is not None) == (read == "hr")
    assert (batch.centroid is not None) == (read == "centroid")


def _config(**optim: object) -> Config:
    run = {"precision": "fp32", "steps": 10, "device": "cpu"}
    return resolve(parse_config({"scale": 2, "optim": optim, "run": run}, "test"))


def test_repeated_updates_lower_the_loss_and_move_the_average(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    config = _config(lr=1e-3, ema=0.5, clip_norm=1000.0)
    update = make_update(config, build("edsr-tiny", 2, blocks=1, channels=8))
    student = update.learners["student"]
    x = torch.from_numpy(rng.random((2, 3, 8, 8), dtype=np.float32))
    hr = torch.from_numpy(rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8))
    batch = Batch(x, hr, None, torch.tensor(1.0))
    losses = []
    for step in range(8):
        update.schedule(step)
        losses.append(update(batch)[0].item())
    assert losses[-1] < losses[0]
    assert student.averaged is not student.network
    assert not any(
        torch.equal(a, b) for a, b in zip(student.averaged.parameters(), student.network.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_the_first_update_of_the_average_copies(name: str) -> None:
    config = _config(name=name, ema=0.9)
    student = Learner(nn.Linear(3, 3), config.optim, config.guard, config.run)
    student.parameters.gradients.fill_(1.0)
    student.schedule(0)
    student.apply(torch.tensor(1.0))
    assert torch.equal(student.averaged.weight, student.network.weight)
    before = student.network.weight.clone()
    student.schedule(10_000)
    student.apply(torch.tensor(torch.nan))
    assert torch.equal(student.averaged.weight, before)
    student.apply(torch.tensor(1.0))
    assert not torch.equal(student.network.weight, before)
    torch.testing.assert_close(student.averaged.weight, 0.9 * before + 0.1 * student.network.weight)


def test_statistics_of_a_normalisation_go_with_the_average() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    parameters = Parameters(network, average=True, precision="fp32")
    network(5 + torch.rand(4, 3, 8, 8))
    averaged = parameters.averaged
    assert all(torch.equal(a, b) for a, b in zip(averaged.buffers(), network.buffers(), strict=True))
    assert not averaged.training


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb", "sgd"])
@pytest.mark.parametrize("planted", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(rng: np.random.Generator, name: str, planted: str) -> None:
    """Weights, optimiser state and average after a bad batch have the bits of a run without it."""
    x = torch.from_numpy(rng.random((2, 3, 8, 8), dtype=np.float32))
    good = Batch(x, torch.from_numpy(rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)), None, torch.tensor(1.0))
    bad = good._replace(x=torch.full_like(x, torch.nan))
    results = []
    for third in (bad, None):
        torch.manual_seed(0)
        config = _config(name=name, lr=1e-3, clip_value=0.1)
        update = make_update(config, build("edsr-tiny", 2, blocks=1, channels=8))
        student = update.learners["student"]
        for step, batch in enumerate((good, good, third, good)):
            hook = None
            if batch is not None and batch is third and planted == "gradient":
                batch = good
                hook = student.parameters.tensors[0].register_hook(lambda grad: grad * torch.inf)
            if batch is not None:
                update.schedule(step)
                update(batch)
            if hook is not None:
                hook.remove()
        kept = student.optimizer.state_dict()["state"].values()
        moments = [t for each in kept for t in each.values() if isinstance(t, torch.Tensor)]
        results.append([p.detach() for p in (*student.network.parameters(), *student.averaged.parameters())] + moments)
        assert student.state.skipped.item() == (third is not None)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_optimisers_by_name() -> None:
    def made(**optim: object) -> torch.optim.Optimizer:
        config = OptimConfig(**optim)  # type: ignore[arg-type]
        parameters = Parameters(nn.Linear(2, 2), average=False, precision="fp32")
        optimizer = make_optimizer(parameters, Judgement.fresh(), config)
        assert isinstance(optimizer, TorchOptimizer)
        return optimizer.optimizer

    assert isinstance(made(name="RAdam"), torch.optim.RAdam)
    assert made(name="sgd", options={"momentum": 0.9}).defaults["momentum"] == 0.9
    assert made(name="adam", options={"amsgrad": True}).defaults["amsgrad"]
    with pytest.raises(UserError, match=r"optim.name=lambda; did you mean lamb\?"):
        made(name="lambda")
    for name in ("adam", "lamb"):
        with pytest.raises(UserError, match="no option nesterov"):
            made(name=name, options={"nesterov": True})


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = OptimConfig(lr=1.0, warmup=4)
    rates = [learning_rate(step, 104, config) for step in range(104)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[54] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(70, 104, OptimConfig(lr=1.0, schedule="constant")) == 1.0


def test_multistep_learning_rate() -> None:
    config = OptimConfig(lr=8.0, schedule="multistep", milestones=[10, 20])
    assert [learning_rate(step, 30, config) for step in (0, 9, 10, 19, 20, 29)] == [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
