"""Small torch modules; the Java tests hold modules with the same fields and the same forward."""

import inspect

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Mlp(nn.Module):
    """(B, 10) -> (B, 2)."""

    def __init__(self):
        super().__init__()
        self.lin0 = nn.Linear(10, 20)
        self.lin1 = nn.Linear(20, 2)

    def forward(self, x):
        return self.lin1(torch.relu(self.lin0(x)))


class EmbConv(nn.Module):
    """(B, 10) token ids below 100 -> (B, 2). `conv1d` is Hugging Face's Conv1D: a linear layer stored (in, out)."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(100, 5)
        self.conv1d = Conv1D(1, 5)
        self.lin0 = nn.Linear(10, 2)

    def forward(self, x):
        return self.lin0(torch.relu(self.conv1d(self.emb(x))).flatten(1))


class HfMlp(nn.Module):
    """(B, T, 6) -> (B, T, 6), two of Hugging Face's Conv1D as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.c_fc = Conv1D(13, 6)
        self.c_proj = Conv1D(6, 13)

    def forward(self, x):
        return self.c_proj(torch.relu(self.c_fc(x)))


class Conv1dNet(nn.Module):
    """(B, 3, 11) -> (B, 2)."""

    def __init__(self):
        super().__init__()
        self.conv1d = nn.Conv1d(3, 7, 3, stride=2, padding=1)
        self.lin0 = nn.Linear(7 * 6, 2)

    def forward(self, x):
        return self.lin0(torch.relu(self.conv1d(x)).flatten(1))


class Conv2dNet(nn.Module):
    """(B, 5, 7, 9) -> (B, 2)."""

    def __init__(self):
        super().__init__()
        self.conv2d = nn.Conv2d(5, 10, 3, stride=(2, 1), padding=(1, 0))
        self.lin0 = nn.Linear(10 * 4 * 7, 2)

    def forward(self, x):
        return self.lin0(torch.relu(self.conv2d(x)).flatten(1))


class Conv2dPointNet(nn.Module):
    """(B, 5, 3, 3) -> (B, 2), a 1x1 kernel."""

    def __init__(self):
        super().__init__()
        self.conv2d = nn.Conv2d(5, 10, 1)
        self.lin0 = nn.Linear(10 * 3 * 3, 2)

    def forward(self, x):
        return self.lin0(torch.relu(self.conv2d(x)).flatten(1))


class Conv2dGroupsNet(nn.Module):
    """(B, 6, 5, 5) -> (B, 2), two groups."""

    def __init__(self):
        super().__init__()
        self.conv2d = nn.Conv2d(6, 10, 3, padding=1, groups=2)
        self.lin0 = nn.Linear(10 * 5 * 5, 2)

    def forward(self, x):
        return self.lin0(torch.relu(self.conv2d(x)).flatten(1))


class Conv2dCircularNet(nn.Module):
    """(B, 3, 5, 4) -> (B, 6, 5, 4), padding that wraps around."""

    def __init__(self):
        super().__init__()
        self.conv2d = nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular")

    def forward(self, x):
        return self.conv2d(x)


class Conv3dNet(nn.Module):
    """(B, 2, 5, 4, 3) -> (B, 2)."""

    def __init__(self):
        super().__init__()
        self.conv3d = nn.Conv3d(2, 6, (3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 1))
        self.lin0 = nn.Linear(6 * 5 * 2 * 3, 2)

    def forward(self, x):
        return self.lin0(torch.relu(self.conv3d(x)).flatten(1))


class AttentionNet(nn.Module):
    """(B, 7, 12) -> (B, 7, 5): self-attention with three heads, the sequence first inside, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(12, 3)
        self.lin0 = nn.Linear(12, 5)

    def forward(self, x):
        x = x.transpose(0, 1)
        return self.lin0(self.mha(x, x, x)[0]).transpose(0, 1)


class Experts(nn.Module):
    """Three experts (N, 6) -> (N, 6) with stacked matrices (expert, out, in), and a stack of a single matrix after them."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(3, 10, 6))
        self.down_proj = nn.Parameter(torch.empty(3, 6, 5))
        self.last_proj = nn.Parameter(torch.empty(1, 6, 6))

    def forward(self, x, shares):
        y = 0
        for e in range(3):
            gate, up = self.linear(x, self.gate_up_proj[e]).chunk(2, dim=-1)
            y = y + shares[..., e : e + 1] * self.linear(torch.relu(gate) * up, self.down_proj[e])
        return y + self.linear(y, self.last_proj[0])

    def linear(self, x, weight):
        return nn.functional.linear(x, weight)


class TransposedExperts(Experts):
    """The same with matrices (expert, in, out)."""

    is_transposed = True

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(3, 6, 10))
        self.down_proj = nn.Parameter(torch.empty(3, 5, 6))

    def linear(self, x, weight):
        return x @ weight


class Router(nn.Module):
    """(N, 6) -> (N, 3), what share each expert has."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 6))

    def forward(self, x):
        return nn.functional.linear(x, self.weight).softmax(-1)


class MoeBlock(nn.Module):
    """Experts, a linear layer beside them, and a matrix of its own."""

    def __init__(self, experts):
        super().__init__()
        self.mix = nn.Parameter(torch.empty(6, 6))
        self.router = Router()
        self.experts = experts
        self.shared = nn.Linear(6, 6)

    def forward(self, x):
        y = self.experts(x, self.router(x)) + self.shared(x)
        return x + nn.functional.linear(y, self.mix)


class Moe(nn.Module):
    """(B, 4, 6) -> (B, 4, 5), two blocks with experts."""

    def __init__(self, experts=Experts):
        super().__init__()
        self.layers = nn.ModuleList([MoeBlock(experts()) for _ in range(2)])
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class TransposedMoe(Moe):
    def __init__(self):
        super().__init__(TransposedExperts)


TOYS = {
    "attention": AttentionNet,
    "mlp": Mlp,
    "embconv": EmbConv,
    "hfmlp": HfMlp,
    "conv1d": Conv1dNet,
    "conv2d": Conv2dNet,
    "conv2d_1x1": Conv2dPointNet,
    "conv2d_groups": Conv2dGroupsNet,
    "conv2d_circular": Conv2dCircularNet,
    "conv3d": Conv3dNet,
    "moe": Moe,
    "moe_transposed": TransposedMoe,
}

# Shape of one sample; `embconv` takes token ids.
SAMPLES = {
    "attention": (7, 12),
    "mlp": (10,),
    "embconv": (10,),
    "hfmlp": (3, 6),
    "conv1d": (3, 11),
    "conv2d": (5, 7, 9),
    "conv2d_1x1": (5, 3, 3),
    "conv2d_groups": (6, 5, 5),
    "conv2d_circular": (3, 5, 4),
    "conv3d": (2, 5, 4, 3),
    "moe": (4, 6),
    "moe_transposed": (4, 6),
}


def arguments(model) -> set[str]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(base.forward).parameters)
