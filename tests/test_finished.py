"""A file that tells others that a run is finished is the last that is written."""
import pytest
from conftest import FEATURES, augment_args, search_args, shown

import augment
import search
import utils

GENE = "[[('skip_connect', 0), ('skip_connect', 1)]]"
GENOTYPE = (f'Genotype(normal={GENE}, normal_concat=[2], reduce={GENE}, reduce_concat=[2], '
            f'rnn={GENE}, rnn_concat=[2])')
SIZES = '--init_channels 2 --layers 1 --epochs 1'.split()


@pytest.mark.parametrize('program, name, tag', [
    (augment, 'results.json', '0_hardest/text_summary'), (search, 'genotype.json', '0_result/text_summary')])
def test_tensorboard_is_complete_before_a_run_counts_as_finished(program, name, tag, small_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, seen = utils.write_json, []

    def look(path, tree):
        if str(path).endswith(name):
            seen.extend(row[0] for row in shown(tmp_path / 'runs' / program.__name__ / 'x'))
        write(path, tree)
    monkeypatch.setattr(utils, 'write_json', look)
    argv = search_args(small_corpus, 'x') if program is search else [*augment_args(small_corpus, 'x', GENOTYPE), *FEATURES]
    program.main([str(word) for word in (*argv, *SIZES)])
    assert tag in seen
