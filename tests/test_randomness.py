import torch

from imago.randomness import derive_seed, seeded_scope, uniforms


def test_a_key_depends_on_every_part_and_on_their_order():
    keys = {
        derive_seed(),
        derive_seed(0),
        derive_seed(1),
        derive_seed(0, 0),
        derive_seed(0, 1),
        derive_seed(1, 0),
        derive_seed("a"),
        derive_seed("b"),
        derive_seed("a", 0),
        derive_seed(-1),
        derive_seed(2**63),
    }
    assert len(keys) == 11
    assert derive_seed("order", 3, 4) == derive_seed("order", 3, 4)


def test_uniforms_are_those_of_the_key_of_each_entry():
    index = torch.tensor([0, 1, 7, 123456, 2**40])
    expected = [(derive_seed("flip", 42, 3, entry) >> 40) / 2**24 for entry in index.tolist()]
    assert uniforms(index, "flip", 42, 3).tolist() == expected


def test_uniforms_are_uniform_and_independent_of_their_neighbours():
    drawn = uniforms(torch.arange(100_000), "flip", 0, 0)
    counts = torch.histc(drawn, 20, 0, 1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi-square, 19 degrees of freedom, p = 0.0007
    assert abs(torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1]) < 0.02


def test_keyed_draws_repeat_and_leave_the_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded_scope("augmentation", 1, 2):
        first = torch.rand(3)
    with seeded_scope("augmentation", 1, 2):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(3), expected)
