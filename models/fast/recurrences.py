"""The recurrences of many edges at once. Library recurrences where they are fast, otherwise one batched recurrence per layer.

Shapes: J recurrences side by side, (J, N, T, H); G gates: 4 for an LSTM, 3 for a GRU, 1 for a plain RNN.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models import fast
from models.derivatives import second_derivatives
from models.rnn_ops import AttentiveRecurrent, Recurrent, at_least_float32, both_directions, run_rnn

BATCHED = (Recurrent, AttentiveRecurrent)  # operations that `run_together` knows


def run_together(xs: list, ops: list) -> Tensor:
    """[op_j(x_j) for all j] as one tensor, (J, N, T, H).

    xs: J sequences (N, T, H). ops: J operations of the types BATCHED, whose layer norm is not affine. All is float32, also
    under autocast: a cell state does not survive T additions in eight bits.
    """
    with torch.autocast(xs[0].device.type, enabled=False):
        xs = [at_least_float32(x) for x in xs]
        found = {}
        for family in (nn.LSTM, nn.GRU, nn.RNN):
            jobs = [j for j, op in enumerate(ops) if type(op.rnn) is family]
            if not jobs:
                continue
            if library_is_faster(family, xs[0]):
                found.update(zip(jobs, by_library([xs[j] for j in jobs], [ops[j].rnn for j in jobs])))
            else:
                jobs.sort(key=lambda j: -ops[j].rnn.num_layers)  # stacks that go on after a layer come first
                found.update(batched([xs[j] for j in jobs], [ops[j].rnn for j in jobs], jobs))
        attentive = [j for j, op in enumerate(ops) if type(op) is AttentiveRecurrent]
        if attentive:
            h = torch.stack([found[j] for j in attentive])
            h = attend(h, [ops[j].query for j in attentive], [ops[j].key for j in attentive])
            found.update(zip(attentive, h.unbind()))
        y = torch.stack([found[j] for j in range(len(ops))])  # (J, N, T, H)
        return F.layer_norm(y, y.shape[-1:], eps=ops[0].norm.eps)


def library_is_faster(family, x: Tensor) -> bool:
    """cuDNN runs a recurrence in one operation, but without a second derivative; on a CPU only oneDNN's LSTM is fast."""
    return not second_derivatives() if fast.on_gpu(x) else family is nn.LSTM


def by_library(xs: list, rnns: list) -> list:
    """The outputs of J recurrences of one family, (N, T, H) each; the two directions are added."""
    zeros = {}  # initial states by number of layers and directions
    found = []
    for x, rnn in zip(xs, rnns):
        n = rnn.num_layers * (2 if rnn.bidirectional else 1)
        if n not in zeros:
            zeros[n] = x.new_zeros(n, len(x), rnn.hidden_size)
        state = (zeros[n], zeros[n]) if isinstance(rnn, nn.LSTM) else zeros[n]
        found.append((both_directions if rnn.bidirectional else run_rnn)(rnn, x, state))
    return found


def batched(xs: list, rnns: list, names) -> dict:
    """{name: (N, T, H)} of stacked recurrences of one family, deepest first; the two directions are added."""
    found, one, two = {}, [], []  # indices of recurrences of one and of two directions
    for i, rnn in enumerate(rnns):
        (two if rnn.bidirectional else one).append(i)
    x_one = torch.stack([xs[i] for i in one]) if one else None
    x_two = torch.stack([xs[i] for i in two]) if two else None
    for layer in range(rnns[0].num_layers):
        lanes = [(rnns[i], '') for i in one] + [(rnns[i], end) for end in ('', '_reverse') for i in two]
        inputs = [] if x_one is None else [(x_one, lanes[:len(one)])]
        if x_two is not None:
            inputs.append((torch.cat([x_two, x_two.flip(2)]), lanes[len(one):]))
        gates = torch.cat([project(x, part, layer) for x, part in inputs])  # (lanes, N, T, G * H)
        y = recur(type(rnns[0]), gates, [getattr(rnn, f'weight_hh_l{layer}{end}') for rnn, end in lanes],
                  [getattr(rnn, f'bias_hh_l{layer}{end}') for rnn, end in lanes])
        forward, backward = y[len(one):].chunk(2) if two else (None, None)
        backward = backward.flip(2) if two else None
        deeper_one = sum(rnns[i].num_layers > layer + 1 for i in one)
        deeper_two = sum(rnns[i].num_layers > layer + 1 for i in two)
        found.update((names[i], y[k]) for k, i in enumerate(one) if k >= deeper_one)
        found.update((names[i], forward[k] + backward[k]) for k, i in enumerate(two) if k >= deeper_two)
        x_one = y[:deeper_one] if deeper_one else None
        x_two = torch.cat([forward[:deeper_two], backward[:deeper_two]], dim=-1) if deeper_two else None
        one, two = one[:deeper_one], two[:deeper_two]
    return found


def project(x: Tensor, lanes: list, layer: int) -> Tensor:
    """The inputs' part of the gates: (J, N, T, K) -> (J, N, T, G * H)"""
    W = torch.stack([getattr(rnn, f'weight_ih_l{layer}{end}') for rnn, end in lanes])  # (J, G * H, K)
    b = torch.stack([getattr(rnn, f'bias_ih_l{layer}{end}') for rnn, end in lanes])
    return torch.baddbmm(b.unsqueeze(1), x.flatten(1, 2), W.transpose(1, 2)).unflatten(1, x.shape[1:3])


def recur(family, gates: Tensor, weights: list, biases: list) -> Tensor:
    """Runs J recurrences along T from zero states: (J, N, T, G * H) -> (J, N, T, H). weights: J x (G * H, H)."""
    W = torch.stack(weights).transpose(1, 2)  # (J, H, G * H)
    b = torch.stack(biases).unsqueeze(1)  # (J, 1, G * H)
    h = gates.new_zeros(*gates.shape[:2], W.shape[1])  # (J, N, H)
    c, ys = h, []
    if family is nn.GRU:
        for g in gates.unbind(dim=2):
            u = torch.baddbmm(b, h, W)
            (g_rz, g_n), (u_rz, u_n) = (v.split([2 * h.shape[-1], h.shape[-1]], dim=-1) for v in (g, u))
            r, z = torch.sigmoid(g_rz + u_rz).chunk(2, dim=-1)
            h = torch.lerp(torch.tanh(torch.addcmul(g_n, r, u_n)), h, z)
            ys.append(h)
        return torch.stack(ys, dim=2)
    for g in (gates + b.unsqueeze(2)).unbind(dim=2):
        u = torch.baddbmm(g, h, W)
        if family is nn.LSTM:
            i, f, n, o = u.chunk(4, dim=-1)
            c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(n))
            h = torch.sigmoid(o) * torch.tanh(c)
        else:
            h = torch.tanh(u)
        ys.append(h)
    return torch.stack(ys, dim=2)


def attend(h: Tensor, queries: list, keys: list) -> Tensor:
    """h + softmax(q(h) k(h)^T / sqrt(H)) h, (J, N, T, H)"""
    q, k = (torch.baddbmm(torch.stack([f.bias for f in maps]).unsqueeze(1), h.flatten(1, 2),
                          torch.stack([f.weight for f in maps]).transpose(1, 2)).view_as(h) for maps in (queries, keys))
    # Not F.scaled_dot_product_attention: its kernels cannot be differentiated twice.
    return h + torch.softmax(q @ k.transpose(-2, -1) / h.shape[-1] ** .5, dim=-1) @ h
