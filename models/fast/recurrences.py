"""The recurrences of many edges at once: one batched recurrence a family and layer instead of one call an edge and operation.

Shapes: J recurrences side by side, (J, N, T, H); G gates: 4 for an LSTM, 3 for a GRU, 1 for a plain RNN.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from models.rnn_ops import AttentiveRecurrent


def run(xs, ops):
    """[op_j(x_j) for x_j, op_j in zip(xs, ops)] as one tensor (J, N, T, H).

    xs: J sequences (N, T, H). ops: J Recurrents or AttentiveRecurrents that end in the same layer norm without affine.
    Works in float32 under autocast: a cell state does not survive T additions in eight bits.
    """
    with torch.autocast(xs[0].device.type, enabled=False):
        xs = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in xs]
        found = {}
        for family in (nn.LSTM, nn.GRU, nn.RNN):
            jobs = [j for j, op in enumerate(ops) if type(op.rnn) is family]
            jobs.sort(key=lambda j: -ops[j].rnn.num_layers)  # those that go on after a layer come first
            if family is nn.LSTM and not xs[0].is_cuda:  # oneDNN has an LSTM of its own, which is faster one by one
                found.update((j, directions_added(ops[j].rnn(xs[j])[0], ops[j].rnn)) for j in jobs)
            elif jobs:
                found.update(stacks([xs[j] for j in jobs], [ops[j].rnn for j in jobs], jobs))
        looking = [j for j, op in enumerate(ops) if isinstance(op, AttentiveRecurrent)]
        if looking:
            h = torch.stack([found[j] for j in looking])
            found.update(zip(looking, attend(h, [ops[j].query for j in looking], [ops[j].key for j in looking]).unbind()))
        y = torch.stack([found[j] for j in range(len(ops))])  # (J, N, T, H)
        return F.layer_norm(y, y.shape[-1:], eps=ops[0].norm.eps)


def directions_added(y, rnn):
    """(N, T, D * H) -> (N, T, H)"""
    return sum(y.chunk(2, dim=-1)) if rnn.bidirectional else y


def stacks(xs, rnns, names):
    """{name: (N, T, H)} of stacked recurrences of one family, deepest first; the two directions of one are added."""
    found, one, two = {}, [], []  # indices of recurrences with one and with two directions
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
        forth, back = y[len(one):].chunk(2) if two else (None, None)
        back = back.flip(2) if two else None
        last_one = sum(rnns[i].num_layers > layer + 1 for i in one)
        last_two = sum(rnns[i].num_layers > layer + 1 for i in two)
        found.update((names[i], y[k]) for k, i in enumerate(one) if k >= last_one)
        found.update((names[i], forth[k] + back[k]) for k, i in enumerate(two) if k >= last_two)
        x_one = y[:last_one] if last_one else None
        x_two = torch.cat([forth[:last_two], back[:last_two]], dim=-1) if last_two else None
        one, two = one[:last_one], two[:last_two]
    return found


def project(x, lanes, layer):
    """What the inputs give to the gates: (J, N, T, K) -> (J, N, T, G * H)"""
    W = torch.stack([getattr(rnn, f'weight_ih_l{layer}{end}') for rnn, end in lanes])  # (J, G * H, K)
    b = torch.stack([getattr(rnn, f'bias_ih_l{layer}{end}') for rnn, end in lanes])
    return torch.baddbmm(b.unsqueeze(1), x.flatten(1, 2), W.transpose(1, 2)).unflatten(1, x.shape[1:3])


def recur(family, gates, weights, biases):
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


def attend(h, queries, keys):
    """h + softmax(q(h) k(h)^T / sqrt(H)) h, (J, N, T, H)"""
    q, k = (torch.baddbmm(torch.stack([f.bias for f in maps]).unsqueeze(1), h.flatten(1, 2),
                          torch.stack([f.weight for f in maps]).transpose(1, 2)).view_as(h) for maps in (queries, keys))
    # Not F.scaled_dot_product_attention: its kernels cannot be differentiated twice.
    return h + torch.softmax(q @ k.transpose(-2, -1) / h.shape[-1] ** .5, dim=-1) @ h
