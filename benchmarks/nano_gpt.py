"""Plain GPT and its batches in the style of Karpathy's nanoGPT, as a peer; no comparison by itself.

Rows without padding, all of one length, from random positions of a single stream; scaled_dot_product_attention; logits of
all positions at once. Parameter names are GPT-2's, so that `models.hf_names` reads them (see `as_hugging_face`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemformer.models.gpt import GptConfig


class _Attention(nn.Module):
    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.heads, self.dropout = config.num_attention_heads, config.hidden_dropout_prob

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(d, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = self.c_proj(y.transpose(1, 2).contiguous().view(b, t, d))
        return F.dropout(y, self.dropout, self.training)


class _Mlp(nn.Module):
    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = config.hidden_dropout_prob

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.dropout, self.training)


class _Block(nn.Module):
    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.hidden_size), _Attention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.hidden_size), _Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGpt(nn.Module):
    """GPT-2's shape with the exact GELU. Unlike nanoGPT, no dropout on attention probabilities, as in ours."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.hidden_size),
                "wpe": nn.Embedding(config.max_position_embeddings, config.hidden_size),
                "h": nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers)),
                "ln_f": nn.LayerNorm(config.hidden_size),
            }
        )
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / (2 * config.num_hidden_layers) ** 0.5)
            elif name.endswith(".weight") and "ln_" not in name:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        x = F.dropout(x, self.config.hidden_dropout_prob, self.training)
        for block in self.transformer["h"]:
            x = block(x)
        logits = F.linear(self.transformer["ln_f"](x), self.transformer["wte"].weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))


def sample_batch(stream: Tensor, *, rows: int, length: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return ids (rows, length) from random positions of a stream, and the id after each."""
    generator = torch.Generator().manual_seed(seed + (step << 20))
    starts = torch.randint(len(stream) - length, (rows, 1), generator=generator)
    block = stream[starts + torch.arange(length + 1)]
    return block[:, :-1], block[:, 1:]


def as_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters as GPT-2 stores them, with transposed linear layers."""
    return {name: x.t() if name.endswith((*_LINEAR,)) else x for name, x in state.items()}


_LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
