"""Streams belong to environments: not to the batch, not to each other."""

import torch

from neuraverse.sim.randomness import Randomness


def test_numbers_are_uniform_and_normal():
    random = Randomness(200)
    random.seed(1)
    u, z = random.uniform(500), random.normal(501)
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    # 100,000 draws: the standard error of the mean is 0.29 / 316 = 0.0009, of the variance about 0.0003.
    assert abs(float(u.mean()) - 0.5) < 0.005
    assert abs(float(u.var()) - 1.0 / 12.0) < 0.002
    assert z.shape == (200, 501)
    assert abs(float(z.mean())) < 0.015
    assert abs(float(z.std()) - 1.0) < 0.015
    # Neighbouring seeds and neighbouring draws are uncorrelated.
    assert abs(float(torch.corrcoef(torch.stack((u[:-1].flatten(), u[1:].flatten())))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack((u[:, :-1].flatten(), u[:, 1:].flatten())))[0, 1])) < 0.02


def test_a_stream_depends_on_its_seed_alone():
    batch, one = Randomness(8), Randomness(1)
    batch.seed(100)
    one.seed(105)
    assert torch.equal(batch.uniform(7)[5:6], one.uniform(7))
    batch.uniform(3, torch.tensor([0, 2]))  # others draw; number 5 is not touched
    assert torch.equal(batch.uniform(4)[5:6], one.uniform(4))


def test_drawing_in_parts_is_drawing_at_once():
    a, b = Randomness(3), Randomness(3)
    a.seed(9)
    b.seed(9)
    assert torch.equal(torch.cat((a.uniform(2), a.uniform(3)), dim=1), b.uniform(5))


def test_between_keeps_its_bounds():
    random = Randomness(50)
    draw = random.between(-2.0, 3.0, 40)
    assert float(draw.min()) >= -2.0
    assert float(draw.max()) < 3.0
