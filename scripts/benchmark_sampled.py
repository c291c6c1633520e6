"""The sampled relaxation beside the mixture, in its fast form: steps take turns, each with the path of its own draw."""
from types import SimpleNamespace

from models.sampled import Sampler
from scripts import benchmark_steps as bs

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


def compare(preset: str, device, warmup: int, repeats: int, threads: int, **changes) -> dict:
    """{'steps': [{'step', 'softmax', 'gumbel', 'uniform': ms}], 'memory': bs.memory of each form}. changes: of settings."""
    forms, rows = [SampledSteps(form, bs.settings('search', preset, **changes), device) for form in FORMS], []
    for step in ('weight_step', 'alpha_step_1'):
        times = bs.take_turns(forms, step, device, warmup, repeats)
        rows.append({'step': step, **{form: 1e3 * t for form, t in times.items()}})
        print(step, *(f'{form} {1e3 * t:.1f} ms' for form, t in times.items()), flush=True)
    del forms
    return {'steps': rows, 'memory': [bs.memory(form, preset, device, threads, SampledSteps, **changes)
                                       for form in FORMS]}
