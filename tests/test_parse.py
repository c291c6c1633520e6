"""From alpha to a gene: edges are ranked by softmax weight, and `none` is never chosen."""
import pytest
import torch

from models.search_cnn import parse

OPS = ('skip_connect', 'sep_conv_3x3', 'none')


def test_edges_are_ranked_by_softmax_weight_not_by_alpha():
    # Edge 0 has the largest alpha, yet all its operations have: its softmax is flat. That of edge 1 is decided.
    alpha = [torch.tensor([[9., 9., 9.], [1., 5., 0.], [0., 1., 1.]])]
    assert parse(alpha, 2, OPS) == [[('sep_conv_3x3', 1), ('sep_conv_3x3', 2)]]


def test_none_is_never_chosen():
    torch.manual_seed(0)
    for _ in range(50):
        alpha = [torch.randn(2 + i, 8) * 3 for i in range(4)]
        for edges in alpha:
            edges[:, -1] += 6.
        names = [name for node in parse(alpha) for name, _ in node]
        assert len(names) == 8 and 'none' not in names


def test_none_takes_its_share_of_the_softmax():
    # Among the other operations edge 0 has the largest alpha, but `none` takes most of its softmax.
    alpha = [torch.tensor([[4., 9.], [2., 1.], [1., 1.]])]
    assert parse(alpha, 2, ('skip_connect', 'none')) == [[('skip_connect', 1), ('skip_connect', 2)]]


def test_edge_weights_of_partial_channels_multiply_the_ranking():
    alpha = [torch.tensor([[0., 2., 0.], [0., 1., 0.], [0., 1.5, 0.]])]
    assert parse(alpha, 2, OPS) == [[('sep_conv_3x3', 0), ('sep_conv_3x3', 2)]]
    shares = [torch.tensor([.1, .6, .3])]
    assert parse(alpha, 2, OPS, edge_weights=shares) == [[('sep_conv_3x3', 1), ('sep_conv_3x3', 2)]]


def test_alpha_must_have_a_column_for_every_operation():
    with pytest.raises(ValueError, match='operations'):
        parse([torch.zeros(2, 4)], 2, OPS)
