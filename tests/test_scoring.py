import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from config import UserError
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


def test_tally_of_shares_is_that_of_the_whole_batch():
    """Two processes add the parts of each mean loss that come from their shares."""
    rng = np.random.default_rng(0)
    logits, y = torch.from_numpy(rng.normal(size=(23, 3))), torch.from_numpy(rng.integers(0, 3, 23))
    whole, shares = scoring.Tally(), [scoring.Tally(), scoring.Tally()]
    for a, b in zip(logits.split(5), y.split(5)):
        whole.add(torch.nn.functional.cross_entropy(a, b), a, b)
        for rank, share in enumerate(shares):
            part = torch.nn.functional.cross_entropy(a[rank::2], b[rank::2], reduction='sum') / len(b)
            share.add(part, a[rank::2], b[rank::2])
    other = []
    shares[1].scores(lambda own: other.append(own) or [own])
    found = shares[0].scores(lambda own: [own, *other])
    assert found == pytest.approx(whole.scores())


def test_tally_counts_an_unequal_last_batch_by_its_size():
    rng, tally = np.random.default_rng(0), scoring.Tally()
    logits, y = torch.from_numpy(rng.normal(size=(23, 3))), torch.from_numpy(rng.integers(0, 3, 23))
    for a, b in zip(logits.split(5), y.split(5)):
        tally.add(torch.nn.functional.cross_entropy(a, b), a, b)
    found = tally.scores()
    assert found['loss'] == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item())
    assert found['ua'] == pytest.approx(balanced_accuracy_score(y, logits.argmax(1)))
    tally.add(torch.tensor(float('nan')), logits[:1], y[:1])
    with pytest.raises(UserError, match='diverged'):
        tally.scores()


def test_confusion_shows_recall_and_counts_of_every_cell():
    labels, predicted, names = [0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0], ['angry', 'sad', 'absent']
    (axes,) = scoring.plot_confusion(labels, predicted, names, 'EMO-DB, fold 1').axes
    shown = [text.get_text().split('\n') for text in axes.texts]
    counts = confusion_matrix(labels, predicted, labels=range(3))
    assert [int(n) for _, n in shown] == counts.flatten().tolist() == [2, 1, 0, 1, 3, 0, 0, 0, 0]
    assert [recall for recall, _ in shown] == ['0.67', '0.33', '0.00', '0.25', '0.75', '0.00', '0.00', '0.00', '0.00']
    assert axes.get_title() == 'EMO-DB, fold 1' and [t.get_text() for t in axes.get_xticklabels()] == names
    assert scoring.plot_confusion(labels, predicted, names).axes[0].get_title() == ''
