import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

import utils
from datasets import scoring


@pytest.mark.parametrize('seed', range(10))
def test_scores_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 4, 37), rng.integers(0, 4, 37)
    found = scoring.scores(labels, predicted)
    assert found['ua'] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found['wa'] == pytest.approx(accuracy_score(labels, predicted))
    assert found['macro_f1'] == pytest.approx(f1_score(labels, predicted, average='macro'))


def test_ua_and_wa_by_hand():
    found = scoring.scores([0, 0, 0, 0, 1], [0, 0, 0, 0, 0])
    assert found['wa'] == .8 and found['ua'] == .5
    assert scoring.scores([0, 0, 1], [0, 2, 1])['ua'] == .75  # class 2 is predicted but never occurs: it has no recall


def test_tally_counts_an_unequal_last_batch_by_its_size():
    rng, tally = np.random.default_rng(0), scoring.Tally()
    logits, y = torch.from_numpy(rng.normal(size=(23, 3))), torch.from_numpy(rng.integers(0, 3, 23))
    for a, b in zip(logits.split(5), y.split(5)):
        tally.add(torch.nn.functional.cross_entropy(a, b), a, b)
    found = tally.scores()
    assert found['loss'] == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item())
    assert found['ua'] == pytest.approx(balanced_accuracy_score(y, logits.argmax(1)))
    tally.add(torch.tensor(float('nan')), logits[:1], y[:1])
    with pytest.raises(utils.UserError, match='diverged'):
        tally.scores()
