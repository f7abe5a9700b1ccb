from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from nichekd.models import LoraSettings
from nichekd.models._encoder_zoo import build_timm
from nichekd.models._lora import MARK, adapted_layers, add_lora, load_lora, lora_state, merge_lora

SMALL = LoraSettings(r=2, alpha=4, dropout=0.0, blocks=2)


def vit(**changes):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2} | changes
    return build_timm("vit_tiny_patch16_224", **sizes)


@pytest.fixture
def crops():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_every_linear_layer_of_the_last_blocks():
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert adapted_layers(vit(), 2) == [f"blocks.{i}.{layer}" for i in (1, 2) for layer in layers]


def test_nothing_changes_at_first(crops):
    module = vit().eval()
    before = module(crops)
    assert torch.equal(add_lora(module, SMALL).eval()(crops), before)


def test_training_changes_adapters_only_bit_for_bit(crops):
    module = add_lora(vit(), SMALL)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(crops).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(MARK in name for name in changed)
    assert {name.split(".")[1] for name in changed} == {"1", "2"}


def test_only_the_adapters_are_written_and_read_back(crops):
    trained = add_lora(vit(), SMALL)
    for name, parameter in trained.named_parameters():
        if MARK in name:
            nn.init.normal_(parameter, std=0.1)
    state = lora_state(trained)
    assert sum(value.numel() for value in state.values()) < 0.2 * sum(p.numel() for p in trained.parameters())
    again = load_lora(add_lora(vit(), SMALL), state)
    assert torch.equal(again.eval()(crops), trained.eval()(crops))


def test_merged_adapters_leave_an_ordinary_module(crops):
    plain = vit()
    adapted = add_lora(vit(), SMALL).eval()
    for name, parameter in adapted.named_parameters():
        if MARK in name:
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        before = adapted(crops)
        merged = merge_lora(adapted)
        torch.testing.assert_close(merged(crops), before, rtol=1e-4, atol=1e-5)
    assert [(name, type(m)) for name, m in merged.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    own = plain.state_dict()
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, own[name])}
    assert changed == {f"{layer}.weight" for layer in adapted_layers(plain, 2)}
    add_lora(merged, SMALL)  # and once more, as if nothing had been


def test_adapters_of_another_encoder():
    with pytest.raises(ValueError, match="another encoder: 8 of their names"):
        load_lora(add_lora(vit(), SMALL), lora_state(add_lora(vit(), LoraSettings(r=2, blocks=1))))


def test_not_a_vision_transformer():
    with pytest.raises(ValueError, match="Sequential has no transformer blocks.*encoder='uni2'"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), SMALL)


def test_more_blocks_than_there_are():
    with pytest.raises(ValueError, match="adapts 4 blocks, but the encoder has 3"):
        add_lora(vit(), LoraSettings(blocks=4))


@pytest.mark.parametrize("wrong", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"blocks": 0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="r and blocks are at least 1"):
        LoraSettings(**wrong)


def test_missing_peft_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "nichekd\[lora\]"'):
        add_lora(vit(), SMALL)
