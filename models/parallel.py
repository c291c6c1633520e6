"""One run on several processes ("ranks") that torchrun started. Without torchrun there is one rank, and nothing is exchanged.

Each rank holds all parameters and works on a share of every batch. Losses and gradients are summed over ranks, not
averaged. A program calls `start`, `together`, `from_main`, `clip_gradients`, `check_equal` and `stop`, and keeps a `State`.
"""
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import utils
from config import UserError
from datasets.scoring import LOWER

TIMEOUT = timedelta(minutes=5)  # a rank that waits longer for another ends, and the run with it
JOIN = timedelta(minutes=1)  # until torchrun, which is already there, answers
POLL = .1  # s

_turns = itertools.count(1)  # calls of `together`, which all ranks make in the same order


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def place() -> dict:
    """Rank and world size as keyword arguments."""
    return {'rank': rank(), 'world_size': world_size()}


def is_main() -> bool:
    """Whether this is the rank that writes."""
    return rank() == 0


def local_rank() -> int | None:
    """Number of this process on its machine; None without torchrun."""
    return int(os.environ['LOCAL_RANK']) if dist.is_torchelastic_launched() else None


def launcher() -> str:
    """First words of the command line of this run: 'python', or torchrun with its flags."""
    if not dist.is_torchelastic_launched():
        return 'python'
    n_machines = int(os.environ.get('GROUP_WORLD_SIZE', 1))
    more = f' --nnodes {n_machines}' if n_machines > 1 else ''
    return f'torchrun{more} --nproc_per_node {os.environ.get("LOCAL_WORLD_SIZE", 1)}'


def start(config) -> torch.device:
    """Sets the threads, chooses the device, and joins the other processes. `stop` leaves them."""
    utils.set_threads(config.threads)
    if config.deterministic:
        utils.set_deterministic()
    device = utils.choose_device(config.device, local_rank())
    join(device)
    return device


def join(device: torch.device):
    """Joins the process group of torchrun's processes."""
    if not dist.is_torchelastic_launched():
        return
    # torch.optim imports torch.distributed.nn later, whose default arguments keep the process group of that moment
    # alive. The group would outlive `stop`, and a gloo thread that frees a tensor while Python ends aborts the process.
    import torch.distributed.nn  # noqa: F401
    store, rank, world_size = _rendezvous()
    with _answered():
        dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo', timeout=TIMEOUT,
                                store=dist.PrefixStore('ranks', store), rank=rank, world_size=world_size)


def stop():
    """Leaves the process group. Only after success: after a failure other ranks may wait in a sum, and so would this one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int):
    """Ends this process after a failure, at once: Python's own exit aborts while gloo's threads work."""
    if not dist.is_initialized():
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # even if the disk behind them is full
        os._exit(code)


def first_to_speak() -> bool:
    """True on one rank only, so that an error is printed once."""
    if not dist.is_torchelastic_launched():
        return True
    try:
        return _rendezvous()[0].add('spoken', 1) == 1
    except (UserError, RuntimeError):
        return os.environ['RANK'] == '0'


@functools.cache
def _rendezvous():
    """Key-value store shared by torchrun's processes, rank, world size."""
    with _answered():
        return next(dist.rendezvous('env://', timeout=JOIN))


@contextmanager
def _answered():
    try:
        yield
    except RuntimeError as error:  # gloo, NCCL and the store have no narrower kind for a lost peer
        raise UserError(f'another process of this run ended or does not answer ({str(error).splitlines()[0]}): the same '
                        'command with --resume continues') from error


def all_reduce(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Sum of each tensor over ranks, without gradient. Tensors of one dtype travel in one message."""
    tensors = list(tensors)
    if world_size() == 1:
        return tensors
    found = {}
    for dtype in dict.fromkeys(t.dtype for t in tensors):  # ordered, unlike a set
        places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        flat = torch.cat([tensors[i].detach().reshape(-1) for i in places])
        with _answered():
            dist.all_reduce(flat)
        for i, total in zip(places, flat.split([tensors[i].numel() for i in places])):
            found[i] = total.view(tensors[i].shape)
    return [found[i] for i in range(len(tensors))]


def sum_gradients(parameters: Iterable):
    """Replaces every gradient by its sum over ranks."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if world_size() > 1:
        torch._foreach_copy_(grads, all_reduce(grads))


def clip_gradients(parameters: Iterable, max_norm: float) -> torch.Tensor:
    """Sums gradients over ranks, then scales them to a norm of at most max_norm; 0: no clipping. Returns the norm before."""
    parameters = list(parameters)
    sum_gradients(parameters)
    if max_norm > 0:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return gradient_norm(parameters)


def gradient_norm(parameters: Iterable) -> torch.Tensor:
    """Norm of all gradients together."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class _Sum(torch.autograd.Function):
    """y = sum_r x_r on every rank. The loss is a sum over ranks too, so d loss / d x_r = sum_s d loss_s / d y: itself."""

    @staticmethod
    def forward(ctx, x):
        return all_reduce([x])[0]

    @staticmethod
    def backward(ctx, grad):
        return _Sum.apply(grad)


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Sum over ranks that can be differentiated any number of times."""
    return x if world_size() == 1 else _Sum.apply(x)


def gather(x):
    """[x of rank 0, x of rank 1, ...] on every rank; any picklable object."""
    if world_size() == 1:
        return [x]
    found = [None] * world_size()
    with _answered():
        dist.all_gather_object(found, x)
    return found


def together(f: Callable):
    """f() on every rank, first on the first rank of each machine, so that the others find its caches filled.

    An error on one rank is an error on all. f may take any time and must not talk to other ranks.
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
    _wait_for(key, world_size())  # not in `gather`, which waits for TIMEOUT at most
    errors = [e for e in gather(error) if e is not None]
    if errors:
        raise error or errors[0]
    return result


def _wait_for(key, n):
    with _answered():
        while _rendezvous()[0].add(key, 0) < n:
            time.sleep(POLL)


def from_main(f: Callable):
    """Calls f() on rank 0 alone and returns its result on every rank."""
    result = [together(lambda: f() if is_main() else None)]
    if world_size() > 1:
        with _answered():
            dist.broadcast_object_list(result, 0)
    return result[0]


def broadcast_(tensors: Iterable[torch.Tensor]):
    """Replaces each tensor by that of rank 0."""
    tensors = list(tensors)
    if world_size() > 1:
        torch._foreach_copy_(tensors, all_reduce([t if is_main() else torch.zeros_like(t) for t in tensors]))


class State:
    """Everything a resumed run continues from: networks, optimizers, schedulers, and the random generators of all ranks.

    draws: the generator of batches and masks, in the same state on every rank. Every rank but 0 gets its own seed for
    dropout and drop-path.
    """

    def __init__(self, seed: int, device: torch.device, **parts):
        self.device, self.parts = device, parts
        self.draws = torch.Generator().manual_seed(seed)
        if rank():
            torch.manual_seed(int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0]))  # the CPU takes 32 bits

    def load(self, checkpoint: dict | None, log: Callable):
        """Restores a checkpoint, if there is one, and gives every rank the network of rank 0. log: prints a line."""
        begun = world_size()
        if checkpoint:
            for name, part in self.parts.items():
                if name == 'steps' and name not in checkpoint:
                    continue  # an earlier version did not have it
                before = _kinds(part)
                part.load_state_dict(checkpoint[name])
                if _kinds(part) != before or not _fits_parameters(part):
                    raise ValueError(f'the state of {name} is of another run')
            set_rng_state(checkpoint['rng'], self.draws, self.device)
            begun = len(checkpoint['rng']['ranks'])
        broadcast_(self.parts['net'].state_dict().values())
        if world_size() > 1:
            log('%d processes share every batch. If one ends, all end: the same command with --resume continues', world_size())
        if begun != world_size():
            log('NOTE: the checkpoint is of %d processes, %d continue: dropout masks will differ', begun, world_size())

    def state_dict(self) -> dict:
        """Contents of a checkpoint; every rank must call this. UserError if a number is not finite."""
        found = {name: part.state_dict() for name, part in self.parts.items()}
        for where, t in tensors_in({name: tree for name, tree in found.items() if name != 'steps'}):
            if t.is_floating_point() and not torch.isfinite(t).all():
                raise UserError(f'training diverged: {where} is not finite; {LOWER}')
        return {'rng': rng_state(self.draws, self.device), **found}


def tensors_in(tree, where: str = '') -> Iterator[tuple[str, torch.Tensor]]:
    """('optim.state.0.exp_avg', tensor) of all tensors in nested dicts and lists."""
    if torch.is_tensor(tree):
        yield where, tree
    elif isinstance(tree, dict | list | tuple):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from tensors_in(value, f'{where}.{name}' if where else str(name))


def _kinds(part):
    """What a checkpoint of the same settings does not change; a network checks its tensors itself."""
    if isinstance(part, torch.optim.Optimizer):
        return [{name: type(value) if name == 'lr' else value for name, value in group.items() if name != 'params'}
                for group in part.param_groups]
    if isinstance(part, torch.optim.lr_scheduler.LRScheduler):
        return {name: type(value) for name, value in part.state_dict().items()}


def _fits_parameters(part):
    """Whether the tensors of an optimizer have the shapes of their parameters."""
    states = part.state.items() if isinstance(part, torch.optim.Optimizer) else ()
    return all(x.shape in (p.shape, ()) for p, state in states for x in state.values() if torch.is_tensor(x))


def rng_state(draws: torch.Generator, device: torch.device) -> dict:
    """State of the shared generator and of the default generators of every rank."""
    own = {'cpu': torch.get_rng_state(), 'cuda': torch.cuda.get_rng_state(device) if device.type == 'cuda' else None}
    return {'shared': draws.get_state(), 'ranks': gather(own)}


def set_rng_state(state: dict, draws: torch.Generator, device: torch.device):
    """Restores `rng_state`. A rank that the state does not know keeps its random numbers."""
    draws.set_state(state['shared'])
    if rank() < len(state['ranks']):
        own = state['ranks'][rank()]
        torch.set_rng_state(own['cpu'])
        if device.type == 'cuda' and own['cuda'] is not None:
            torch.cuda.set_rng_state(own['cuda'], device)


def differs(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether any tensor differs between ranks, to the bit."""
    if world_size() == 1:
        return False
    return len(set(gather(utils.digest_of_tensors(tensors)))) > 1


def check_equal(net: torch.nn.Module, epoch: int):
    """UserError if the ranks have different weights."""
    if differs(net.state_dict().values()):
        raise UserError(f'epoch {epoch} left the processes with different weights, which is a fault of this program or of the '
                        'hardware: --resume continues from the epoch before')


def sharing(forward: Callable) -> Callable:
    """forward(*tensors) -> (N, n), made such that each rank computes a share of the rows and all get every row.

    All but the first of the tensors may be None.
    """
    if world_size() == 1:
        return forward

    def whole(*tensors):
        n, rows = len(tensors[0]), slice(rank(), None, world_size())
        n_own = len(range(n)[rows])
        own = rows if n_own else slice(1)  # a rank without rows needs the width too
        found = forward(*(None if t is None else t[own] for t in tensors))
        y = found.new_zeros(n, found.shape[1])
        y[rows] = found[:n_own]
        return all_reduce([y])[0]
    return whole


def progress(batches: Iterable, what: str, total: int):
    """A progress bar over batches, on one rank and a terminal only."""
    return tqdm(batches, what, total, disable=None if is_main() else True, leave=False)
