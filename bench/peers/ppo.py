"""PPO of one iteration from given rollouts in plain PyTorch, in f64: what worker/tests/reference/ppo.json has.

    python bench/peers/ppo.py > worker/tests/reference/ppo.json
    python bench/peers/ppo.py --check        the figures against finite differences, loops over tokens and an example by hand

The model is `tiny` with the formula's weights (see teach.py), and besides its head `value.weight (1, d)`: the value of a row is that weight
times the last norm's result. The reference policy has every weight of two or more dims times 1.01, rounded to f32. As in teach.py each text goes
through attention alone; what a micro-batch has in common are the router's losses, means over its tokens.

Four answers, two micro-batches of two. A text is a prompt and an answer of n tokens; all but its last token go in, and row t predicts token t + 1,
so that the answer's token at position p has its log-probability and its value at row p - 1. Logits are divided by the temperature, those of the
reference as well. Per answer, t over its tokens:

  reward      r_t = -beta (old_logp_t - ref_logp_t), and at the last token the score, less the penalty where no stop came
  advantage   d_t = r_t + gamma V_{t+1} - V_t, A_t = d_t + gamma lambda A_{t+1}, with V the old values and nothing after the last token
  return      R_t = A_t + V_t
  whitened    (A - mean) / sqrt(variance + 1e-8) over the tokens of all answers, variance of n - 1; of one token: A - mean
  policy      mean over the tokens of all answers of max(-A ratio, -A clip(ratio, 1 - 0.2, 1 + 0.2)), ratio = exp(logp - old_logp)
  value       half of the mean of max((V - R)^2, (clip(V, V_old - 0.2, V_old + 0.2) - R)^2)
  loss        policy + 0.1 value + the router's losses as in pre-training

`old_logp` and `old_value` are what the weights give, moved by up to 0.4 and rounded to f32, so that ratios and values are clipped on both sides:
`old_logp`, `old_value` and `ref_logp` are inputs of what comes after them. Four updates on the same answers: AdamW, lr 1e-3, warm-up 4, weight
decay 0.1, clipped to 1.
"""
import json
import math
import sys

import torch

from teach import LB_COEF, REFERENCE, Z_COEF, Taught, formula_weight, lr_at, splitmix64, text_tokens

TEMPERATURE, BETA, GAMMA, LAMBDA, CLIP, VALUE_CLIP, VALUE_COEF, PENALTY = 0.7, 0.05, 1.0, 0.95, 0.2, 0.2, 0.1, 1.0
REFERENCE_FACTOR, OFFSET, UPDATES, FIRST = 1.01, 0.4, 4, 8
PROMPTS, ANSWERS, SCORES, STOPPED = [40, 9, 25, 64], [20, 1, 7, 13], [1.5, -0.75, 0.25, 2.0], [True, True, False, True]
MICRO_BATCHES = [[0, 1], [2, 3]]
VALUE_TENSOR = 47


class Policy(Taught):
    def __init__(self, names, shapes, factor=1.0):
        super().__init__(names, shapes, False)
        self.value = torch.nn.Parameter(formula_weight(VALUE_TENSOR, [1, self.c.d]))
        for parameter in self.model.parameters():
            if parameter.ndim >= 2:
                parameter.data = (parameter.data * factor).float().double()

    def trained(self):
        return super().trained() | {"value.weight": self.value}

    def rows(self, texts, prompts):
        """Of each text of a micro-batch: log-probabilities over the vocabulary at the answer's rows (n, vocab), those of its tokens (n), values
        (n); and the router's losses."""
        hs, z, balance = self([text[:-1] for text in texts])
        out = []
        for h, text, prompt in zip(hs, texts, prompts):
            h, answer = h[prompt - 1 :], torch.tensor(text[prompt:])
            all_logp = torch.log_softmax(self.model.head(h) / TEMPERATURE, -1)
            out.append((all_logp, all_logp.gather(1, answer[:, None])[:, 0], h @ self.value[0]))
        return out, z, balance


def rounded(x):
    return x.detach().float().double()


def offsets(seed, num):
    """Between -OFFSET and OFFSET, by the hash that gives the weights."""
    u = [((splitmix64((seed << 32) + i) >> 40) - 2**23) / 2**23 for i in range(num)]
    return OFFSET * torch.tensor(u, dtype=torch.float64)


def rewards_of(old_logp, ref_logp, score, stopped):
    """(n)"""
    rewards = -BETA * (old_logp - ref_logp)
    rewards[-1] += score if stopped else score - PENALTY
    return rewards


def advantages_of(rewards, values):
    """(n), from the last token to the first"""
    advantages, after, value_after = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        after = rewards[t] + GAMMA * value_after - values[t] + GAMMA * LAMBDA * after
        advantages[t], value_after = after, values[t]
    return advantages


def whitened(advantages):
    """Of each answer, over the tokens of all."""
    tokens = torch.cat(advantages)
    centered = [a - tokens.mean() for a in advantages]
    return centered if len(tokens) < 2 else [a / torch.sqrt(tokens.var() + 1e-8) for a in centered]


def experience(policy, reference, texts):
    """What the update is given, and what follows from it; a list by answer each."""
    own = [policy.rows([text], [prompt])[0][0] for text, prompt in zip(texts, PROMPTS)]
    ref_logp = [rounded(reference.rows([text], [prompt])[0][0][1]) for text, prompt in zip(texts, PROMPTS)]
    e = {"logp": [logp.detach() for _, logp, _ in own], "value": [value.detach() for _, _, value in own], "ref_logp": ref_logp}
    e["old_logp"] = [rounded(x + offsets(140 + i, len(x))) for i, x in enumerate(e["logp"])]
    e["old_value"] = [rounded(x + offsets(200 + i, len(x))) for i, x in enumerate(e["value"])]
    e["rewards"] = [rewards_of(*x) for x in zip(e["old_logp"], ref_logp, SCORES, STOPPED)]
    e["advantages"] = [advantages_of(r, v) for r, v in zip(e["rewards"], e["old_value"])]
    e["returns"] = [a + v for a, v in zip(e["advantages"], e["old_value"])]
    e["whitened"] = whitened(e["advantages"])
    return e


def losses(policy, texts, e):
    """The loss, and the figures of an update as tensors."""
    rows, z, balance = [None] * len(texts), 0, 0
    for micro_batch in MICRO_BATCHES:
        of_batch, of_z, of_balance = policy.rows([texts[i] for i in micro_batch], [PROMPTS[i] for i in micro_batch])
        for i, row in zip(micro_batch, of_batch):
            rows[i] = row
        z, balance = z + of_z / len(MICRO_BATCHES), balance + of_balance / len(MICRO_BATCHES)
    all_logp, logp, value = (torch.cat([row[k] for row in rows]) for k in range(3))
    old_logp, old_value, a, r = (torch.cat(e[k]) for k in ("old_logp", "old_value", "whitened", "returns"))
    log_ratio = logp - old_logp
    ratio = log_ratio.exp()
    free, clipped = -a * ratio, -a * ratio.clamp(1 - CLIP, 1 + CLIP)
    moved = old_value + (value - old_value).clamp(-VALUE_CLIP, VALUE_CLIP)
    value_free, value_clipped = (value - r).square(), (moved - r).square()
    policy_loss, value_loss = torch.maximum(free, clipped).mean(), 0.5 * torch.maximum(value_free, value_clipped).mean()
    loss = policy_loss + VALUE_COEF * value_loss + Z_COEF * z + LB_COEF * balance
    figures = {
        "loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "z": z, "lb": balance,
        "clipped": (clipped > free).double().mean(), "value_clipped": (value_clipped > value_free).double().mean(),
        "approx_kl": -log_ratio.mean(), "approx_kl_of_squares": 0.5 * log_ratio.square().mean(),
        "entropy": -(all_logp.exp() * all_logp).sum(-1).mean(), "mean_ratio": ratio.mean(),
    }  # fmt: skip
    # How far the nearest token is from where it would be clipped, or no longer: what rounds to f32 must not decide.
    kinks = [(ratio - 1 - CLIP).abs(), (ratio - 1 + CLIP).abs(), ((value - old_value).abs() - VALUE_CLIP).abs()]
    return loss, figures, float(torch.cat(kinks).min().detach())


def numbers(x):
    return [x.tolist() for x in x] if isinstance(x, list) else float(x.detach())


def setting():
    tiny = json.load(open(REFERENCE))
    names, shapes = zip(*tiny["tensors"])
    assert len(names) == VALUE_TENSOR, "value.weight comes after the model's own tensors"
    text = list(tiny["text"].encode())
    texts = [text_tokens(text, 7 * i, p) + text_tokens(text, 31 + 5 * i, a) for i, (p, a) in enumerate(zip(PROMPTS, ANSWERS))]
    policy, reference = Policy(names, shapes), Policy(names, shapes, REFERENCE_FACTOR)
    return policy, texts, experience(policy, reference, texts)


def train(policy, texts, e):
    """The updates' figures, and the gradients of the first."""
    parameters = policy.trained()
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    norms = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    updates, gradients = [], {}
    for t in range(UPDATES):
        loss, figures, kink = losses(policy, texts, e)
        assert kink > 1e-4, f"update {t}: a token is {kink} from being clipped; other offsets are needed"
        optimizer.zero_grad()
        loss.backward()
        if t == 0:
            gradients = {n: {"norm": float(p.grad.norm()), "first": p.grad.flatten()[:FIRST].tolist()} for n, p in parameters.items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(t, 1e-3, 4, 10)
        optimizer.step()
        updates.append({key: numbers(x) for key, x in (figures | {"gnorm": norm}).items()})
    return updates, gradients, {n: float(p.detach().abs().sum()) for n, p in parameters.items()}


# ---------------------------------------------------------------- --check


def near(what, found, expected, tolerance):
    assert abs(found - expected) <= tolerance * max(1.0, abs(expected)), f"{what}: expected {expected}, found {found}"


def check_gradients(policy, texts, e):
    """Each tensor's gradient along a random direction, and at its largest element, against central differences. Returns the largest error,
    relative to the gradient's norm."""
    parameters = policy.trained()
    loss, _, _ = losses(policy, texts, e)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    generator, worst, step = torch.Generator().manual_seed(1), 0.0, 1e-6
    for (name, p), g in zip(parameters.items(), gradients):
        direction = torch.randn(p.shape, dtype=torch.float64, generator=generator)
        element = torch.zeros_like(p).flatten()
        element[g.abs().argmax()] = 1.0
        # Along the gradient itself the slope is its norm: nothing that is missing from it could cancel out.
        for along in (direction / direction.norm(), element.view(p.shape), g / g.norm()):
            at = []
            for sign in (1, -1):
                p.data += sign * step * along
                with torch.no_grad():
                    at.append(float(losses(policy, texts, e)[0]))
                p.data -= sign * step * along
            slope, expected = (at[0] - at[1]) / (2 * step), float((g * along).sum())
            error = abs(slope - expected) / float(g.norm())
            assert error < 1e-5, f"{name}: the loss rises by {slope}, the gradient says {expected}"
            worst = max(worst, error)
    return worst


def check_by_loops(policy, texts, e):
    """Advantages as sums of what comes after, and the losses token by token, in Python's floats."""
    for i, (r, v) in enumerate(zip(e["rewards"], e["old_value"])):
        r, v = r.tolist(), v.tolist() + [0.0]
        d = [r[t] + GAMMA * v[t + 1] - v[t] for t in range(len(r))]
        for t in range(len(r)):
            sum_of = sum((GAMMA * LAMBDA) ** (s - t) * d[s] for s in range(t, len(d)))
            near(f"advantage {t} of answer {i}", float(e["advantages"][i][t]), sum_of, 1e-12)
        kl = sum((e["old_logp"][i] - e["ref_logp"][i]).tolist())
        near(f"sum of rewards of answer {i}", sum(r), SCORES[i] - (0.0 if STOPPED[i] else PENALTY) - BETA * kl, 1e-12)
    tokens = [a for of_answer in e["advantages"] for a in of_answer.tolist()]
    mean = math.fsum(tokens) / len(tokens)
    deviation = math.sqrt(math.fsum((a - mean) ** 2 for a in tokens) / (len(tokens) - 1) + 1e-8)
    policy_loss = value_loss = 0.0
    for i, text in enumerate(texts):
        (h,), _, _ = policy([text[:-1]])
        logits, values = policy.model.head(h).tolist(), (h @ policy.value[0]).tolist()
        for t in range(ANSWERS[i]):
            p = PROMPTS[i] + t
            scaled = [x / TEMPERATURE for x in logits[p - 1]]
            logp = scaled[text[p]] - max(scaled) - math.log(math.fsum(math.exp(x - max(scaled)) for x in scaled))
            near("log-probability", float(e["logp"][i][t]), logp, 1e-12)
            ratio, a = math.exp(logp - float(e["old_logp"][i][t])), (float(e["advantages"][i][t]) - mean) / deviation
            near("whitened advantage", float(e["whitened"][i][t]), a, 1e-12)
            policy_loss += max(-a * ratio, -a * min(max(ratio, 1 - CLIP), 1 + CLIP)) / len(tokens)
            v, old, r = values[p - 1], float(e["old_value"][i][t]), float(e["returns"][i][t])
            value_loss += 0.5 * max((v - r) ** 2, (min(max(v, old - VALUE_CLIP), old + VALUE_CLIP) - r) ** 2) / len(tokens)
    _, figures, _ = losses(policy, texts, e)
    near("policy loss", numbers(figures["policy_loss"]), policy_loss, 1e-12)
    near("value loss", numbers(figures["value_loss"]), value_loss, 1e-12)


def check_by_hand():
    """Three tokens, as docs/post-training.md works them out."""
    t = lambda *x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    rewards = rewards_of(t(-1.0, -2.0, -0.5), t(-1.2, -1.8, -1.1), 1.0, True)
    values = t(0.47, 0.57, 0.77)
    advantages = advantages_of(rewards, values)
    white = whitened([advantages])[0]
    ratio = t(1.3, 1.0, 0.7)
    policy = torch.maximum(-white * ratio, -white * ratio.clamp(0.8, 1.2))
    expected = {
        "rewards": (rewards, [-0.01, 0.01, 0.97], 1e-12),
        "advantages": (advantages, [0.47, 0.40, 0.20], 1e-12),
        "returns": (advantages + values, [0.94, 0.97, 0.97], 1e-12),
        "whitened": (white, [0.8088, 0.3093, -1.1181], 5e-5),
        "policy": (policy, [-0.9706, -0.3093, 0.8945], 5e-5),
    }
    for what, (found, numbers_by_hand, tolerance) in expected.items():
        for found, by_hand in zip(found.tolist(), numbers_by_hand):
            near(what, found, by_hand, tolerance)
    near("one token whitened", float(whitened([t(3.0)])[0]), 0.0, 0.0)
    assert not rewards_of(t(-1.0), t(-1.0), 1.0, False).any(), "a text without a stop loses the penalty"


def check_start(policy, texts, e):
    """With what the weights give as old policy: every ratio is 1, nothing is clipped, and of the reference's own weights nobody is far."""
    own = e | {"old_logp": e["logp"], "old_value": e["value"]}
    _, figures, _ = losses(policy, texts, own)
    near("mean ratio", numbers(figures["mean_ratio"]), 1.0, 1e-14)
    assert float(figures["clipped"]) == float(figures["value_clipped"]) == 0.0, "nothing is clipped at the start"
    near("KL to itself", numbers(figures["approx_kl"]), 0.0, 1e-14)


def check():
    policy, texts, e = setting()
    check_by_hand()
    check_by_loops(policy, texts, e)
    check_start(policy, texts, e)
    worst = check_gradients(policy, texts, e)
    # Both sides of each clip are there.
    a, ratio = torch.cat(e["whitened"]), (torch.cat(e["logp"]) - torch.cat(e["old_logp"])).exp()
    value = torch.cat(e["value"]) - torch.cat(e["old_value"])
    sides = [(a > 0) & (ratio > 1 + CLIP), (a < 0) & (ratio < 1 - CLIP), (a > 0) & (ratio < 1 - CLIP), (a < 0) & (ratio > 1 + CLIP)]
    sides += [value > VALUE_CLIP, value < -VALUE_CLIP]
    counts = [int(side.sum()) for side in sides]
    assert all(counts), f"tokens on each side of a clip: {counts}"
    print(f"gradients are within {worst:.1e} of finite differences; tokens on each side of a clip: {counts}")


def main():
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--check"]:
        return check()
    policy, texts, e = setting()
    updates, gradients, sums = train(policy, texts, e)
    tokens = {key: torch.cat(e[key]) for key in ("old_logp", "ref_logp")}
    out = {
        "temperature": TEMPERATURE, "beta": BETA, "gamma": GAMMA, "lambda": LAMBDA, "clip": CLIP, "value_clip": VALUE_CLIP,
        "value_coef": VALUE_COEF, "penalty": PENALTY, "reference_factor": REFERENCE_FACTOR, "value_tensor": VALUE_TENSOR,
        "micro_batches": MICRO_BATCHES, "texts": texts, "prompts": PROMPTS, "scores": SCORES, "stopped": STOPPED,
    }  # fmt: skip
    out |= {key: numbers(x) for key, x in e.items()}
    out |= {"reference_kl": numbers((tokens["old_logp"] - tokens["ref_logp"]).mean())}
    out |= {"gradients": gradients, "updates": updates, "param_abs_sum_after": sums}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
