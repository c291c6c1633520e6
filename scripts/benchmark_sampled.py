"""The sampled relaxation beside the mixture, in its fast form: steps take turns, each with the path of its own draw."""
from types import SimpleNamespace

from models.sampled import Sampler
from scripts import benchmark_steps as bs
from scripts.benchmark_report import number

FORMS = ('softmax', 'gumbel', 'uniform')  # the mixture, and the two ways to draw a path


class SampledSteps(bs.Steps):
    """The steps of search with a path drawn before each of them."""

    def __init__(self, form, config, device):
        super().__init__('fast', config, device)
        self.form = form
        relaxation = SimpleNamespace(relaxation='softmax' if form == 'softmax' else 'sampled', sampling=form, epochs=1,
                                     seed=0)
        self.sampler = Sampler(self.net, relaxation)

    def weight_step(self):
        self.sampler.before_weights()
        super().weight_step()

    def alpha_step_1(self):
        self.sampler.before_alphas(1)
        super().alpha_step_1()


def compare(preset: str, device, warmup: int, repeats: int, threads: int, **changes):
    """{'steps': [{'step', 'softmax', 'gumbel', 'uniform': ms}], 'memory': bs.memory of each form}, whenever it has grown.

    changes: of settings.
    """
    forms = [SampledSteps(form, bs.settings('search', preset, **changes), device) for form in FORMS]
    found = {'steps': [], 'memory': []}
    for step in ('weight_step', 'alpha_step_1'):
        times = bs.take_turns(forms, step, device, warmup, repeats)
        found['steps'].append({'step': step, **{form: t and 1e3 * t for form, t in times.items()}})
        print(step, *(f'{form} {number(ms, 1)} ms' for form, ms in found['steps'][-1].items() if form != 'step'), flush=True)
        yield found
    del forms
    bs.free()
    for form in FORMS:
        found['memory'].append(bs.memory(form, preset, device, threads, SampledSteps, **changes))
        yield found
