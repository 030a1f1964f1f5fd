"""Parameter groups and schedules."""

import pytest
from torch import nn

from hrsam_lit.errors import UserError
from hrsam_lit.training.optim import OptimizerConfig, build_optimizer, schedule_factor


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 3)
        self.table = nn.Parameter(nn.Linear(3, 3).weight.detach().clone())
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def no_weight_decay(self):
        return {"table"}

    def layer_scales(self, decay):
        return {f"blocks.{i}.{kind}": decay ** (2 - i) for i in range(2) for kind in ("weight", "bias")}


def groups_of(built, module):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        names[id(parameter)]: (group["initial_lr"], group["weight_decay"])
        for group in built["optimizer"].param_groups
        for parameter in group["params"]
        if id(parameter) in names
    }


@pytest.mark.parametrize(
    ("no_decay", "spared"),
    [
        ("encoder", {"embed.bias", "table", "blocks.0.bias", "blocks.1.bias"}),
        ("vectors", {"embed.bias", "blocks.0.bias", "blocks.1.bias"}),
        ("nothing", set()),
    ],
)
def test_every_parameter_is_trained_once_with_its_decay(no_decay, spared):
    encoder = Encoder()
    built = build_optimizer(encoder, None, OptimizerConfig(no_decay=no_decay), 10)
    assigned = groups_of(built, encoder)
    assert set(assigned) == {name for name, _ in encoder.named_parameters()}
    assert {name for name, (_, decay) in assigned.items() if decay == 0} == spared
    assert sum(len(group["params"]) for group in built["optimizer"].param_groups) == len(assigned)


def test_layer_decay_and_the_decoders_rate():
    encoder, decoder = Encoder(), nn.Linear(3, 3)
    config = OptimizerConfig(lr=1.0, layer_decay=0.5, decoder_lr=0.1)
    built = build_optimizer(encoder, decoder, config, 10)
    rates = {name: rate for name, (rate, _) in groups_of(built, encoder).items()}
    assert rates["blocks.0.weight"] == 0.25 and rates["blocks.1.bias"] == 0.5 and rates["embed.weight"] == 1.0
    assert {rate for rate, _ in groups_of(built, decoder).values()} == {0.1}


def test_frozen_parameters_are_in_no_group():
    encoder = Encoder()
    encoder.blocks[0].requires_grad_(False)
    assert not any(
        name.startswith("blocks.0")
        for name in groups_of(build_optimizer(encoder, None, OptimizerConfig(), 10), encoder)
    )


def test_schedule_warms_up_and_ends_at_zero():
    linear = schedule_factor(OptimizerConfig(warmup_steps=10), 110)
    assert [linear(0), linear(9), linear(10), linear(60), linear(110)] == pytest.approx([0.1, 1, 1, 0.5, 0])
    cosine = schedule_factor(OptimizerConfig(warmup_steps=0, schedule="cosine"), 100)
    assert [cosine(0), cosine(50), cosine(100)] == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("change", [{"layer_decay": 0.0}, {"layer_decay": 1.5}, {"lr": 0.0}, {"warmup_steps": -1}])
def test_impossible_settings_are_named(change):
    with pytest.raises(UserError, match=next(iter(change))):
        OptimizerConfig(**change)


def test_without_max_steps_there_is_no_schedule():
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        build_optimizer(Encoder(), None, OptimizerConfig(), -1)
