"""One run on several processes, ranks, that torchrun started. Without torchrun every function here does nothing.

Each rank holds all parameters and works on a share of every batch; what it finds is summed over the ranks, not averaged.
"""
import functools
import hashlib
import itertools
import os
import sys
import time
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=5)  # a rank that waits for another for longer ends, and with it the run
JOIN = timedelta(minutes=1)  # until torchrun, which is there already, answers
POLL = .1  # s

_turns = itertools.count(1)  # calls of `together`, which every rank makes in the same order


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def place():
    """This rank's place, as keyword arguments."""
    return {'rank': rank(), 'world_size': world_size()}


def is_main():
    """Whether this is the rank that writes."""
    return rank() == 0


def local_rank():
    """Number of this process on its machine; None without torchrun."""
    return int(os.environ['LOCAL_RANK']) if dist.is_torchelastic_launched() else None


def launcher():
    """What a command line of this run begins with."""
    if not dist.is_torchelastic_launched():
        return 'python'
    n_machines = int(os.environ.get('GROUP_WORLD_SIZE', 1))
    more = f' --nnodes {n_machines}' if n_machines > 1 else ''
    return f'torchrun{more} --nproc_per_node {os.environ.get("LOCAL_WORLD_SIZE", 1)}'


@functools.cache
def _rendezvous():
    """The key-value store that torchrun's processes share, rank, world size."""
    with _answered():
        return next(dist.rendezvous('env://', timeout=JOIN))


def start(device):
    """Joins the other processes that torchrun started; `stop` ends it."""
    if not dist.is_torchelastic_launched():
        return
    # Its default arguments keep the group that exists when it is first imported, which torch.optim does later: the group would
    # outlive `stop`, and a thread of gloo that frees a tensor while Python ends aborts the process.
    import torch.distributed.nn  # noqa: F401
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    store, rank, world_size = _rendezvous()
    with _answered():
        dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo', timeout=TIMEOUT,
                                store=dist.PrefixStore('ranks', store), rank=rank, world_size=world_size)


def stop():
    """Only at a good end: after a failure others may be waiting in a sum, and this would wait with them."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code):
    """Ends this process after a failure, at once: Python's own end aborts it while threads of gloo are at work."""
    if not dist.is_initialized():
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # a full disk behind them changes nothing
        os._exit(code)


def first_to_speak():
    """True once among all ranks: many end for one reason, and one of them says so."""
    if not dist.is_torchelastic_launched():
        return True
    try:
        return _rendezvous()[0].add('spoken', 1) == 1
    except (ConnectionError, RuntimeError):
        return os.environ['RANK'] == '0'


@contextmanager
def _answered():
    try:
        yield
    except RuntimeError as error:  # gloo, NCCL and the store have no narrower kind for a peer that is gone
        raise ConnectionError(f'another process of this run ended or does not answer ({str(error).splitlines()[0]}): '
                              'the same command with --resume goes on') from error


def all_reduce(tensors):
    """Each tensor's sum over ranks, without gradient, as a list; all of one dtype go in one message."""
    if world_size() == 1:
        return list(tensors)
    found = {}
    for dtype in dict.fromkeys(t.dtype for t in tensors):  # in order, which a set has not
        places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        flat = torch.cat([tensors[i].detach().reshape(-1) for i in places])
        with _answered():
            dist.all_reduce(flat)
        for i, total in zip(places, flat.split([tensors[i].numel() for i in places])):
            found[i] = total.view(tensors[i].shape)
    return [found[i] for i in range(len(tensors))]


def sum_gradients(parameters):
    """Replaces every gradient by its sum over ranks."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if world_size() > 1:
        torch._foreach_copy_(grads, all_reduce(grads))


class _Sum(torch.autograd.Function):
    """y = sum_r x_r on every rank. The loss is a sum over ranks too, so d loss / d x_r = sum_s d loss_s / d y: itself."""

    @staticmethod
    def forward(ctx, x):
        return all_reduce([x])[0]

    @staticmethod
    def backward(ctx, grad):
        return _Sum.apply(grad)


def sum_over_ranks(x):
    """Sum over ranks that can be differentiated, as often as wanted."""
    return x if world_size() == 1 else _Sum.apply(x)


def announce(log, checkpoint=None):
    """Tells the reader of the log what several processes mean for this run."""
    if world_size() > 1:
        log('%d processes share every batch. If one ends, all end: the same command with --resume goes on', world_size())
    begun = len(checkpoint['rng']['ranks']) if checkpoint else world_size()
    if begun != world_size():
        log('NOTE: the checkpoint is of %d processes, %d go on: they draw other dropout', begun, world_size())


def gather(x):
    """[x of rank 0, x of rank 1, ...] on every rank; any object, for what happens once an epoch."""
    if world_size() == 1:
        return [x]
    found = [None] * world_size()
    with _answered():
        dist.all_gather_object(found, x)
    return found


def together(f):
    """f() on every rank, on the first of each machine before the others, so that they find its caches filled.

    What fails on one rank fails on all. f may take as long as it likes, and must not talk to other ranks.
    """
    if world_size() == 1:
        return f()
    key, result, error = f'turn {next(_turns)}', None, None
    n_machines = int(os.environ.get('GROUP_WORLD_SIZE', 1))
    if local_rank():
        _wait_for(key, n_machines)
    try:
        result = f()
    except Exception as found:
        error = found
    with _answered():
        _rendezvous()[0].add(key, 1)
    _wait_for(key, world_size())  # not in gather, whose patience is TIMEOUT
    errors = [e for e in gather(error) if e is not None]
    if errors:
        raise error or errors[0]
    return result


def _wait_for(key, n):
    with _answered():
        while _rendezvous()[0].add(key, 0) < n:
            time.sleep(POLL)


def from_main(f):
    """What f() gives on rank 0, which alone calls it; on every rank."""
    result = [together(lambda: f() if is_main() else None)]
    if world_size() > 1:
        with _answered():
            dist.broadcast_object_list(result, 0)
    return result[0]


def broadcast_(tensors):
    """Replaces each tensor by that of rank 0."""
    tensors = list(tensors)
    if world_size() > 1:
        torch._foreach_copy_(tensors, all_reduce([t if is_main() else torch.zeros_like(t) for t in tensors]))


def seed_own(seed):
    """Gives every rank but 0 random numbers of its own, for dropout and drop-path."""
    if rank():
        torch.manual_seed(int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0]))  # the CPU reads 32 bits of it


def rng_state(shared, device):
    """State of the generator `shared`, which is the same on all ranks, and of every rank's default ones."""
    own = {'cpu': torch.get_rng_state(), 'cuda': torch.cuda.get_rng_state(device) if device.type == 'cuda' else None}
    return {'shared': shared.get_state(), 'ranks': gather(own)}


def set_rng_state(state, shared, device):
    """A rank that the state does not know keeps the random numbers it has."""
    shared.set_state(state['shared'])
    if rank() < len(state['ranks']):
        own = state['ranks'][rank()]
        torch.set_rng_state(own['cpu'])
        if device.type == 'cuda' and own['cuda'] is not None:
            torch.cuda.set_rng_state(own['cuda'], device)


def differs(tensors):
    """Whether a tensor is not the same to the bit on every rank."""
    if world_size() == 1:
        return False
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return len(set(gather(digest.digest()))) > 1


def sharing(forward):
    """forward, X -> (N, n), such that each rank computes a share of the rows and all get all of them; without gradient."""
    if world_size() == 1:
        return forward

    def whole(X):
        rows = slice(rank(), None, world_size())
        own = X[rows]
        found = forward(own if len(own) else X[:1])  # with no row of its own a rank needs n nevertheless
        y = found.new_zeros(len(X), found.shape[1])
        y[rows] = found[:len(own)]
        return all_reduce([y])[0]
    return whole
