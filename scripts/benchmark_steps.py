"""Steps of search and retraining in the fast and the plain form, and what one of them takes: time and memory."""
import gc
import multiprocessing
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import config as cf
import utils
from models.architect import Architect
from models.augment_cnn import AugmentCNN
from models.search_cnn import SearchCNNController
from models.sync import CrossEntropyLoss
from scripts.textbook_architect import TextbookArchitect

ROOT = Path(__file__).resolve().parent.parent
N_CLASSES = 8  # RAVDESS


class Steps:
    """A network in one form, with the steps of search or retraining on random input.

    device: None leaves fake tensors where they are. net: the weights are copied from there.
    """

    def __init__(self, form: str, config, device, hessian='difference', genotype=None, textbook=True, net=None):
        torch.manual_seed(0)
        self.form, self.config = form, config
        self.net = (make_net if genotype is None else make_discrete)(config, form == 'fast', genotype)
        if net is not None:
            self.net.load_state_dict(net.state_dict())
        if device is not None:
            self.net.to(device)
            if form == 'fast' and config.channels_last:
                self.net.to(memory_format=torch.channels_last)
        sizes = config.batch_size, 1, config.n_mels, config.n_frames  # N, 1, F, T
        self.batches = [(torch.randn(sizes, device=device), torch.randint(N_CLASSES, sizes[:1], device=device))
                        for _ in range(2)]
        self.autocast = utils.autocast(device or torch.device('cpu'), config.amp and form == 'fast')
        self.weights = list(self.net.parameters() if genotype else self.net.weights())
        self.optim = torch.optim.SGD(self.weights, .025, momentum=.9, weight_decay=3e-4, foreach=True)
        if genotype is None:
            textbook = textbook and form == 'plain' and hessian == 'difference'
            self.architect = TextbookArchitect(self.net, .9, 3e-4) if textbook else Architect(self.net, .9, 3e-4, hessian)

    def weight_step(self):
        with self.autocast:
            loss = self.net.loss(*self.batches[0])
        self._descend(loss)

    def alpha_step_1(self):
        with self.autocast:
            self.architect.backward(*self.batches[1])

    def alpha_step_2(self):
        self.architect.unrolled_backward(*self.batches[0], *self.batches[1], .025, self.optim)

    def augment_step(self):
        X, y = self.batches[0]
        with self.autocast:
            logits, aux = self.net(X)
            loss = nn.functional.cross_entropy(logits, y)
            loss = loss if aux is None else loss + self.config.aux_weight * nn.functional.cross_entropy(aux, y)
        self._descend(loss)

    def _descend(self, loss):
        self.optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 5., foreach=True)
        self.optim.step()


def make_net(config, fast, _=None):
    return SearchCNNController(
        1, config.init_channels, N_CLASSES, config.layers, CrossEntropyLoss(), config.n_nodes, config.stem_multiplier,
        config.rnn_layers, config.rnn_nodes, config.rnn_channels, config.cnn_ops, config.rnn_ops, config.dropout, fast=fast)


def make_discrete(config, fast, genotype):
    return AugmentCNN(
        None, 1, config.init_channels, N_CLASSES, config.layers, config.aux_weight > 0, genotype, config.stem_multiplier,
        config.rnn_layers, config.rnn_channels, config.dropout, fast=fast)


def settings(section: str, preset: str, **changes):
    """The configuration of a program: its defaults, or a file of configs/, with some changes."""
    values = {} if preset == 'default' else cf.read_yaml(ROOT / 'configs' / f'{preset}.yaml', section)
    return cf.build(section, cf.Given({'name': 'benchmark', **values, **changes}))


def pair(*args, **kwargs) -> list:
    """Steps in both forms, with the same weights."""
    fast = Steps('fast', *args, **kwargs)
    return [fast, Steps('plain', *args, **kwargs, net=fast.net)]


def seconds(step, device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def take_turns(forms: list, step: str, device, warmup: int, repeats: int) -> dict:
    """{form: median seconds of the step, or None if it needs more memory than the GPU has}"""
    found = {steps.form: [] for steps in forms}
    for _ in range(warmup + repeats):
        for steps in forms:
            if found[steps.form] is None:
                continue
            try:
                found[steps.form].append(seconds(getattr(steps, step), device))
            except torch.OutOfMemoryError:
                found[steps.form] = None
            if found[steps.form] is None:  # after the exception, which holds the step's tensors
                steps.net.zero_grad(set_to_none=True)
                free()
    return {form: times and statistics.median(times[warmup:]) for form, times in found.items()}


def free():
    """Gives memory of what is no longer used back to the GPU, for other networks and processes."""
    gc.collect()
    torch.cuda.empty_cache()


def memory(form, preset, device, threads, steps=Steps, **changes) -> dict:
    """In a process of its own: seconds of building and first step, and peak MiB of an order-1 search step.

    Both are None if the step needs more memory than the GPU has.
    steps: class of the steps. changes: of the preset's settings.
    """
    context = multiprocessing.get_context('spawn')
    queue = context.SimpleQueue()
    process = context.Process(target=_memory, args=(queue, form, preset, str(device), threads, steps, changes))
    process.start()
    process.join()
    if process.exitcode:
        raise utils.UserError(f'the process that measures memory ended with code {process.exitcode}')
    return queue.get()


def _memory(queue, form, *args):
    try:
        peak, first = _peak(form, *args)
    except torch.OutOfMemoryError:
        peak = first = None
    queue.put({'form': form, 'peak_mib': peak, 'first_step_s': first})


def _peak(form, preset, device, threads, steps, changes) -> tuple:
    """(peak MiB, seconds of building and first step) of this process."""
    utils.set_threads(threads)
    device, began = torch.device(device), time.perf_counter()
    if device.type == 'cuda':
        torch.empty(1, device=device)
    start = resident('VmRSS')
    steps = steps(form, settings('search', preset, **changes), device)
    first = time.perf_counter() - began + seconds(steps.weight_step, device)
    for _ in range(2):
        steps.weight_step()
        steps.alpha_step_1()
    peak = torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else resident('VmHWM') - start
    return peak / 2 ** 20, first


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most (VmHWM)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
