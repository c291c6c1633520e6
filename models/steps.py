"""The steps of an epoch: a run can be stopped between any two, and a step whose gradient is not finite is skipped."""
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

import utils
from datasets.scoring import LOWER, Diverged, Tally
from models import parallel, stopwatch
from models.stopwatch import Stopwatch

PATIENCE = 10  # gradients in a row that are not finite, after which a run ends


def _by_dtype(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """In lists of one dtype: on a GPU a list of several is copied one tensor at a time."""
    groups = {}
    for t in tensors:
        groups.setdefault(t.dtype, []).append(t)
    return list(groups.values())


class Steps:
    """Counts the steps of one epoch after another. As a part of parallel.State it is in every checkpoint.

    A checkpoint in the middle of an epoch holds the state of the generator of batches at the epoch's beginning. A resumed run
    draws the batches from there again, without training on them, up to the step where it was stopped. With several processes
    all stop after the same step, once one of them has got the signal.
    """

    def __init__(self, save: Callable | None = None, buffers: Iterable[torch.Tensor] = ()):
        """save(): writes a checkpoint. Without it and `begin`: one epoch that cannot be stopped.

        buffers: of the network, which a skipped step leaves as they were; `begin` finds them itself.
        """
        self.save, self.state, self.files_of = save, None, None
        self.in_a_row, self.buffers, self.kept = Counter(), _by_dtype(buffers), []
        self.epoch, self.done, self.start, self.tally, self.left = 0, 0, None, Tally(), None
        self.spent, self.watch = None, None  # what earlier processes took of this epoch; what this one takes

    def begin(self, epoch: int, state: 'parallel.State', optim: torch.optim.Optimizer, files_of: Callable):
        """Begins an epoch, or goes on with the one that a checkpoint was written in.

        files_of(step, draws): files of that batch, if `draws` is in the state of the epoch's beginning.
        """
        self.state, self.optim, self.files_of = state, optim, files_of
        self.buffers, self.kept = _by_dtype(state.parts['net'].buffers()), []
        if epoch != self.epoch:
            self.epoch, self.done, self.start, self.tally = epoch, 0, state.draws.get_state(), Tally()
            self.in_a_row, self.spent = Counter(), None
        else:
            self.tally.restore(self.left, state.device, parallel.is_main())
            optim._opt_called = True  # else its scheduler warns, if no step is left of the epoch
        self.watch = Stopwatch(state.device, self.spent)
        utils.hold_signals(True)
        if number := self._asked():  # since the last step of the epoch before, which has a checkpoint
            utils.stop(number)

    def each(self, batches: Iterable) -> Iterator:
        """Yields the batches that are left of the epoch."""
        batches = iter(batches)
        if self.done:
            draws, device = self.state.draws, self.state.device
            now = parallel.rng_state(draws, device)
            draws.set_state(self.start)
            for _ in range(self.done):
                next(batches)
            parallel.set_rng_state(now, draws, device)
        for batch in batches:
            if not self.kept:
                self.kept = [[torch.empty_like(b) for b in group] for group in self.buffers]
            for kept, group in zip(self.kept, self.buffers):
                torch._foreach_copy_(kept, group)
            yield batch
            self.done += 1
            if self.state and (number := self._asked()):
                self.save()
                utils.stop(number)
        if self.done and max(self.in_a_row.values(), default=0) >= self.done:
            raise self._diverged(max(self.in_a_row, key=self.in_a_row.get), 'in a whole epoch', self.done - 1)

    def sound(self, norm: torch.Tensor, what: str = 'w') -> bool:
        """Whether a gradient of this norm may be used. If not, batch norm forgets the batch; Diverged if that is too often.

        This reads one number from the device. To decide there would cost a launch for every weight, which is dearer.
        """
        if torch.isfinite(norm):
            self.in_a_row[what] = 0
            return True
        self.in_a_row[what] += 1
        self.tally.skipped += 1
        for kept, group in zip(self.kept, self.buffers):
            torch._foreach_copy_(group, kept)
        if self.in_a_row[what] >= PATIENCE:
            raise self._diverged(what, f'{PATIENCE} times in a row', self.done)
        return False

    def _diverged(self, what, how_often, step):
        """Diverged, which names the step, counted from 0, and its batch, unless only the gradient of alpha is not finite."""
        if self.state is None:
            return Diverged(f'training diverged: the gradient was not finite {how_often}; lower the learning rate')
        if what == 'alpha' and not self.in_a_row['w']:
            return Diverged(f'training diverged: the gradient of alpha was not finite {how_often}, last in epoch {self.epoch}, '
                            f'step {step + 1}; take a new --name and a lower --w_lr or --alpha_lr')
        draws = torch.Generator()
        draws.set_state(self.start)
        files = self.files_of(step, draws)
        more = f' and {len(files) - 3} more' if len(files) > 3 else ''
        return Diverged(
            f'training diverged: the gradient was not finite {how_often}, last in epoch {self.epoch}, step {step + 1}, at '
            f'learning rate {self.optim.param_groups[0]["lr"]:.3g}, on {", ".join(files[:3])}{more}; {LOWER}')

    @contextmanager
    def interruptible(self):
        """Inside, where nothing is trained, a signal need not wait for a step. Several processes wait for the next one."""
        if parallel.world_size() > 1:
            yield
            return
        try:
            utils.hold_signals(False)
            yield
        except utils.Stopped as stopped:
            utils.hold_signals(True)
            self.save()
            utils.stop(stopped.args[0])
        utils.hold_signals(True)

    def _asked(self):
        """The signal that asks for a stop, on all processes as soon as on one; 0 if there is none."""
        own = utils.signal_waiting()
        anywhere = parallel.all_reduce([torch.tensor(float(own > 0))])[0]
        return (own or int(signal.SIGTERM)) if anywhere else 0

    def end(self) -> dict[str, float]:
        """The epoch is complete, evaluation included: the next checkpoint is not in its middle.

        Returns what it took, the time before a stop included, as a Stopwatch reads it.
        """
        self.epoch, self.done, self.start, self.tally = 0, 0, None, Tally()
        return self.watch.read()

    def state_dict(self) -> dict:
        return {'epoch': self.epoch, 'done': self.done, 'start': self.start, 'tally': self.tally.state(parallel.gather),
                'in_a_row': dict(self.in_a_row), **(self.watch.read() if self.watch else {})}

    def load_state_dict(self, state: dict):
        self.epoch, self.done, self.start = state['epoch'], state['done'], state['start']
        self.left = state['tally']
        self.in_a_row = Counter(state.get('in_a_row', {}))  # may be older than this
        self.spent = {'seconds': 0., **{name: float(state[name]) for name in stopwatch.NAMES if name in state}}
