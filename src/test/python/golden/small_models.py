"""Models whose module names matter and whose weights do not: matching.py asks PEFT what it does with the names."""

import torch
import transformers
from torch import nn


def module(**children: nn.Module) -> nn.Module:
    made = nn.Module()
    for name, child in children.items():
        made.add_module(name, child)
    return made


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def mlp() -> nn.Module:
    return module(lin0=linear(), relu=nn.ReLU(), drop=nn.Dropout(), lin1=linear(), sm=nn.LogSoftmax(dim=-1))


def nested() -> nn.Module:
    """Three levels with a layer foo each, beside others whose names contain it."""
    inner = module(foo=linear(), barfoo=linear())
    return module(foo=linear(), bar=linear(), module=module(foo=linear(), foobar=linear(), module=inner))


def moe() -> nn.Module:
    """Four layers with numbered experts."""

    def layer():
        experts = nn.ModuleList([module(up_proj=linear()) for _ in range(2)])
        return module(self_attn=module(q_proj=linear()), mlp=module(experts=experts))

    return module(model=module(layers=nn.ModuleList([layer() for _ in range(4)])))


def blocks() -> nn.Module:
    """Enough layers for PEFT to shorten lists of them; one kind's name ends as the other's."""

    def layers():
        return nn.ModuleList([module(query=linear()) for _ in range(21)])

    return module(blocks=layers(), single_blocks=layers())


def headed() -> nn.Module:
    """Has the usual names of output layers, but is no model of transformers."""
    return module(body=module(lm_head=linear()), score=linear(), classifier=linear(), lm_head=linear())


def experts() -> nn.Module:
    """Stacked parameters beside a linear layer."""

    def layer():
        stacked = nn.Module()
        stacked.gate_up = nn.Parameter(torch.zeros(3, 4, 6))
        stacked.down = nn.Parameter(torch.zeros(3, 6, 4))
        stacked.router = nn.Parameter(torch.zeros(3, 4))
        return module(q_proj=nn.Linear(4, 4, bias=False), experts=stacked)

    made = module(layers=nn.ModuleList([layer() for _ in range(2)]))
    made.scale = nn.Parameter(torch.zeros(4, 4))
    return made


def transformer(name: str) -> nn.Module:
    """A model of transformers with one or two small layers."""
    model = getattr(transformers, name)
    sizes = dict(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    if name.startswith("GPT2"):
        sizes = dict(vocab_size=11, n_embd=8, n_layer=2, n_head=2)
    if name.startswith("T5"):
        sizes = dict(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return model(model.config_class(**sizes, pad_token_id=0))
