"""CNN cells with edges side by side in one tensor, for a GPU: few large operations instead of many small ones.

S states of (N, C, F, T), from each of which E edges leave, make maps (N, S * E * C, F, T), in this order. The operations of all
edges are one grouped convolution, one batch norm and so on; the weight of an operation is the scale of its last batch norm.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.derivatives import cudnn, second_derivatives
from models.fast.depthwise import grouped_conv
from models.ops import DilConv, FactorizedReduce, PoolBN, SepConv, Zero, channel_shuffle
from models.sync import batch_norm


def node_states(dag: nn.ModuleList, s0: Tensor, s1: Tensor, weights: list) -> list:
    """States of all nodes: both inputs at once, then node after node."""
    states, n = [s0, s1], len(dag)
    sums = None  # (N, nodes still open, C, F, T): what has reached them so far
    for begin, end in [(0, 2), *((j, j + 1) for j in range(2, n + 1))]:
        nodes = range(max(0, begin - 1), n)  # those that read these states
        w = torch.stack([weights[i][begin:end] for i in nodes], dim=1)  # (S, E, n_ops)
        edges = [dag[i][j] for j in range(begin, end) for i in nodes]
        new = carried(states[begin:end], edges, w)  # (N, S, E, C, F, T)
        new = new.sum(dim=1) if end - begin > 1 else new.squeeze(1)
        sums = new if sums is None else sums[:, 1:] + new
        states.append(sums[:, 0].contiguous(memory_format=_layout(s0)))
    return states[2:]


def carried(xs: list, edges: list, w: Tensor) -> Tensor:
    """edge_se(x_s, w_se) for all edges: (N, S, E, C, F', T'). xs: S states. edges: S * E MixedOps. w: (S, E, n_ops)."""
    x = torch.cat(xs, dim=1) if len(xs) > 1 else xs[0]
    K = getattr(edges[0], 'partial_channels', 1)
    if K == 1:
        return mixtures(x, edges, w)
    x = x.unflatten(1, (len(xs), -1))  # (N, S, C, F, T)
    C_mixed = x.shape[2] // K
    mixed = mixtures(x[:, :, :C_mixed].flatten(1, 2).contiguous(memory_format=_layout(xs[0])), edges, w)
    bypass = edges[0].bypass(x[:, :, C_mixed:].flatten(1, 2)).unflatten(1, (len(xs), 1, -1))
    share = w.sum(dim=2).to(x.dtype)[..., None, None, None]  # (S, E, 1, 1, 1)
    both = torch.cat([mixed, share * bypass], dim=3)
    return channel_shuffle(both.flatten(0, 2), K).unflatten(0, both.shape[:3])


def mixtures(x: Tensor, edges: list, w: Tensor) -> Tensor:
    """sum_o w_seo op_seo(x_s): (N, S, E, C, F', T'). x: (N, S * C, F, T)."""
    S, E, _ = w.shape
    columns = list(zip(*(edge._ops for edge in edges)))  # per operation: its S * E modules
    C = x.shape[1] // S
    scales = w.flatten(0, 1).t().unsqueeze(-1).repeat(1, 1, C).flatten(1).unbind()  # n_ops x (S * E * C,)
    r = F.relu(x)
    convolved = any(type(ops[0]) in (DilConv, SepConv) for ops in columns)
    r_per_edge = for_each_edge(r, S, E) if convolved else None
    total, by_state = None, []  # maps (N, S * E * C, F', T') added up; maps (N, S * C, F', T') with their weights
    for ops, scale, w_o in zip(columns, scales, w.unbind(dim=2), strict=True):
        kind = type(ops[0])
        if kind is Zero:
            continue
        if kind in (DilConv, SepConv):
            y = separable(ops, r_per_edge, scale)
        elif kind is FactorizedReduce:
            y = normed(factorized_reduce(ops, r, S), [op.bn for op in ops], scale)
        elif kind is PoolBN and ops[0][1].training:
            by_state.append((normed_once(ops[0][0](x), [op[1] for op in ops], S), w_o))
            continue
        elif kind is PoolBN:
            y = normed(for_each_edge(ops[0][0](x), S, E), [op[1] for op in ops], scale)
        elif kind is nn.Identity:
            by_state.append((x, w_o))
            continue
        else:
            with cudnn(enabled=not second_derivatives()):
                parts = [x[:, i // E * C:(i // E + 1) * C] for i in range(S * E)]
                y = torch.cat([w_e * op(part) for w_e, op, part in zip(w_o.flatten(), ops, parts)], dim=1)
        total = y if total is None else total.add_(y)
    total = None if total is None else total.unflatten(1, (S, E, C))
    for y, w_o in by_state:
        y, w_o = y.unflatten(1, (S, 1, C)), w_o.to(y.dtype)[..., None, None, None]
        total = w_o * y if total is None else torch.addcmul(total, y, w_o.to(total.dtype))
    return total


def separable(ops, x: Tensor, scale: Tensor | None) -> Tensor:
    """scale * op(x) for S * E DilConvs or SepConvs side by side. x: after its ReLU."""
    if type(ops[0]) is SepConv:
        x = separable([op[0] for op in ops], x, None).relu_()
        ops = [op[1] for op in ops]
    conv = ops[0][1]
    z = grouped_conv(x, torch.cat([op[1].weight for op in ops]), conv.stride[0], conv.dilation[0])
    return normed(grouped_conv(z, torch.cat([op[2].weight for op in ops])), [op[3] for op in ops], scale)


def factorized_reduce(ops, r: Tensor, S: int) -> Tensor:
    """The two convolutions of each FactorizedReduce as one 2 x 2 convolution of stride 2, which has two taps."""
    weight = F.pad(torch.stack([op.even.weight for op in ops]), (0, 1, 0, 1))  # (S * E, C_even, C, 2, 2)
    if ops[0].odd is not None:
        odd = F.pad(torch.stack([op.odd.weight for op in ops]), (1, 0, 1, 0))
        weight = torch.cat([weight, odd], dim=1)
    if r.shape[2] % 2 or r.shape[3] % 2:
        r = F.pad(r, (0, r.shape[3] % 2, 0, r.shape[2] % 2))
    return F.conv2d(r, weight.flatten(0, 1), stride=2, groups=S)


def normed(y: Tensor, norms: list, scale: Tensor | None = None) -> Tensor:
    """scale * BN(y) with the batch norms of all edges side by side. y: (N, len(norms) * C, F, T). scale: one per channel."""
    mean, var = (torch.cat([getattr(norm, name) for norm in norms]) for name in ('running_mean', 'running_var'))
    training, momentum, eps = norms[0].training, norms[0].momentum, norms[0].eps
    y = batch_norm(y, mean, var, scale, None, training, momentum, eps)
    if training:
        keep(norms, mean.chunk(len(norms)), var.chunk(len(norms)))
    return y


def normed_once(y: Tensor, norms: list, S: int) -> Tensor:
    """BN(y) in training, where the batch norms of all E edges of a state have the same statistics. y: (N, S * C, F, T)."""
    mean, var = (torch.zeros_like(norms[0].running_mean).repeat(S) for _ in range(2))
    z = batch_norm(y, mean, var, None, None, True, 1., norms[0].eps)  # momentum 1: mean and var of this batch
    E = len(norms) // S
    means, variances = ([v for v in stat.chunk(S) for _ in range(E)] for stat in (mean, var))
    with torch.no_grad():
        torch._foreach_lerp_([norm.running_mean for norm in norms], means, norms[0].momentum)
        torch._foreach_lerp_([norm.running_var for norm in norms], variances, norms[0].momentum)
        torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    return z


@torch.no_grad()
def keep(norms: list, means, variances):
    """Stores new running statistics."""
    torch._foreach_copy_([norm.running_mean for norm in norms], list(means))
    torch._foreach_copy_([norm.running_var for norm in norms], list(variances))
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)


def for_each_edge(x: Tensor, S: int, E: int) -> Tensor:
    """(N, S * C, F, T) -> (N, S * E * C, F, T): every state E times, in the layout of x."""
    if E == 1:
        return x
    if _layout(x) == torch.contiguous_format:
        return x.unflatten(1, (S, 1, -1)).expand(-1, -1, E, -1, -1, -1).flatten(1, 3)
    x = x.permute(0, 2, 3, 1).unflatten(3, (S, 1, -1))  # (N, F, T, S, 1, C)
    return x.expand(-1, -1, -1, -1, E, -1).flatten(3, 5).permute(0, 3, 1, 2)


def _layout(x):
    return torch.channels_last if x.stride(1) == 1 and x.shape[1] > 1 else torch.contiguous_format
