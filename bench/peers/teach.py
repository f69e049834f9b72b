"""Supervised fine-tuning and a reward model in plain PyTorch, in f64: what worker/tests/reference/teach.json has.

    python bench/peers/teach.py > worker/tests/reference/teach.json

Each text goes through attention alone, without padding and without sharing a sample, so none of what a batch needs can be wrong here. What a
micro-batch has in common are the router's losses: means over its tokens. The weights are the formula's (see formula_weight), the model is `tiny`.

  sft      four dialogues, two micro-batches of two: cross-entropy over the trained tokens of both, divided by their number
  packed   eight short dialogues in one micro-batch
  reward   four pairs, two micro-batches of two: -log sigmoid(c - r - margin) + 0.01 (c + r)^2, means over the four

Ten steps each: AdamW, lr 1e-3, warm-up 4, floor 0.1, weight decay 0.1, clipped to 1.
"""
import json
import os
import sys

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from moe import LB_COEF, PRESETS, Z_COEF, Model, lr_at  # noqa: E402

REFERENCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../worker/tests/reference/tiny.json")
CENTER_COEF, STEPS = 0.01, 10
MASK = (1 << 64) - 1


def splitmix64(x):
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def formula_weight(t, shape):
    """Element i of tensor t: the 24 upper bits of a hash as a number between -1 and 1, times 1/16; norms around 1. Rounded to f32."""
    n = 1
    for dim in shape:
        n *= dim
    u = torch.tensor([((splitmix64((t << 32) + i) >> 40) - 2**23) / 2**23 for i in range(n)], dtype=torch.float64)
    w = u * 0.0625 if len(shape) >= 2 else 1 + u * 0.0625
    return w.float().double().view(shape)


def text_tokens(text, at, num):
    return [text[(at + j) % len(text)] for j in range(num)]


def dialogue(text, b, num):
    """Tokens, and which of them are trained: turns of nine tokens, every other one an answer's."""
    return text_tokens(text, 7 * b, num), [j > 0 and (j // 9 + b) % 2 == 1 for j in range(num)]


def pair(text, b, num_prompt, num_chosen, num_rejected):
    prompt = text_tokens(text, 7 * b, num_prompt)
    return prompt + text_tokens(text, 31 + b, num_chosen), prompt + text_tokens(text, 57 + 2 * b, num_rejected)


class Taught(torch.nn.Module):
    def __init__(self, names, shapes, has_score):
        super().__init__()
        self.c = PRESETS["tiny"]
        self.model = Model(self.c).double()
        inv = self.c.theta ** (-torch.arange(0, self.c.hd, 2).double() / self.c.hd)
        angles = torch.arange(self.c.seq).double()[:, None] * inv[None, :]
        self.cos, self.sin = angles.cos(), angles.sin()
        parameters = dict(self.model.named_parameters())
        for t, (name, shape) in enumerate(zip(names, shapes)):
            if has_score and name == "head.weight":
                self.score = torch.nn.Parameter(formula_weight(t, [1, self.c.d]))
                continue
            parameters[name].data = formula_weight(t, shape)
        self.has_score = has_score

    def trained(self):
        """Parameters by their names."""
        own = {n: p for n, p in self.model.named_parameters() if not (self.has_score and n == "head.weight")}
        return own | ({"score.weight": self.score} if self.has_score else {})

    def forward(self, texts):
        """The last norm's results of each text of a micro-batch, and the router's losses summed over the layers."""
        xs = [self.model.emb(torch.tensor([text])) for text in texts]
        z, balance = 0, 0
        for block in self.model.blocks:
            xs = [x + block.attn(block.n1(x), self.cos[: x.shape[1]], self.sin[: x.shape[1]]) for x in xs]
            h = torch.cat([block.n2(x).view(-1, self.c.d) for x in xs])
            weights, chosen, of_z, mean = block.moe.route(h)
            routed, of_balance = block.moe.experts(h, weights, chosen, mean)
            y = (routed + block.moe.shared(h)).split([x.shape[1] for x in xs])
            xs = [x + y.unsqueeze(0) for x, y in zip(xs, y)]
            z, balance = z + of_z, balance + of_balance
        return [self.model.norm(x)[0] for x in xs], z, balance


def sft_sums(taught, dialogues):
    """Of a micro-batch: cross-entropy over its trained tokens, their number, the router's losses."""
    hs, z, balance = taught([tokens[:-1] for tokens, _ in dialogues])
    ce, num = 0, 0
    for h, (tokens, trained) in zip(hs, dialogues):
        keep = torch.tensor(trained[1:])
        losses = F.cross_entropy(taught.model.head(h), torch.tensor(tokens[1:]), reduction="none")
        ce, num = ce + losses[keep].sum(), num + int(keep.sum())
    return ce, num, z, balance, {}


def reward_sums(taught, pairs):
    hs, z, balance = taught([text for pair, _ in pairs for text in pair])
    scores = torch.stack([(h[-1] * taught.score[0]).sum() for h in hs]).view(-1, 2)
    margins = torch.tensor([margin for _, margin in pairs], dtype=torch.float64)
    chosen, rejected = scores.unbind(1)
    ce = -F.logsigmoid(chosen - rejected - margins).sum()
    more = {"center": ((chosen + rejected) ** 2).sum(), "correct": int((chosen > rejected).sum())}
    return ce, len(pairs), z, balance, more


def run(names, shapes, has_score, micro_batches, sums_of):
    taught = Taught(names, shapes, has_score)
    parameters = taught.trained()
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    norms = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    train = []
    for t in range(STEPS):
        sums = [sums_of(taught, micro_batch) for micro_batch in micro_batches]
        num = sum(s[1] for s in sums)
        ce = sum(s[0] for s in sums) / num
        z, balance = (sum(s[k] for s in sums) / len(sums) for k in (2, 3))
        loss = ce + Z_COEF * z + LB_COEF * balance
        if has_score:
            loss = loss + CENTER_COEF * sum(s[4]["center"] for s in sums) / num
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(t, 1e-3, 4, STEPS)
        optimizer.step()
        row = {"loss": loss, "ce": ce, "z": z, "lb": balance, "gnorm": norm}
        row = {key: float(value.detach()) for key, value in row.items()} | {"num": num}
        if has_score:
            row["correct"] = sum(s[4]["correct"] for s in sums)
        train.append(row)
    return {"train": train, "param_abs_sum_after_10": {n: float(p.detach().abs().sum()) for n, p in parameters.items()}}


def main():
    tiny = json.load(open(REFERENCE))
    names, shapes = zip(*tiny["tensors"])
    text = list(tiny["text"].encode())
    lengths = [129, 77, 100, 41]
    dialogues = [dialogue(text, b, n) for b, n in enumerate(lengths)]
    short_lengths = [65, 40, 64, 33, 50, 12, 61, 20]
    short = [dialogue(text, b, n) for b, n in enumerate(short_lengths)]
    pair_lengths, margins = [[40, 88, 30], [33, 20, 41], [64, 64, 9], [10, 50, 51]], [0.0, 0.5, 0.25, 1.0]
    pairs = [(pair(text, b, *n), m) for b, (n, m) in enumerate(zip(pair_lengths, margins))]
    out = {
        "sft": {"lengths": lengths} | run(names, shapes, False, [dialogues[:2], dialogues[2:]], sft_sums),
        "packed": {"lengths": short_lengths} | run(names, shapes, False, [short], sft_sums),
        "reward": {"lengths": pair_lengths, "margins": margins, "center_coef": CENTER_COEF}
        | run(names, shapes, True, [pairs[:2], pairs[2:]], reward_sums),
    }
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
