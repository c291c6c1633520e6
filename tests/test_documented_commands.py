"""tests/run_documented_commands.py finds every command, and nothing is left out without a reason."""
import sys

import run_documented_commands as runner


def test_commands_are_found_in_every_kind_of_block():
    page = '''Text with `python nothing.py`.

    python search.py --name a \\
        --epochs 3    # a comment
    make test

<!-- skip: needs days -->

    python a.py x
    python b.py x

    python c.py x

Text.

    python d.py x

```bash
$ python e.py x
```

```text
python f.py x
```

<!-- skip: a server -->
```sh
python g.py x
```
    python h.py x
'''
    found = runner.commands(page)
    assert found == [
        ('python search.py --name a --epochs 3', None), ('make test', runner.SKIPPED['make']), ('python a.py x', 'needs days'),
        ('python b.py x', 'needs days'), ('python c.py x', 'needs days'), ('python d.py x', None), ('python e.py x', None),
        ('python g.py x', 'a server'), ('python h.py x', None)]


def test_the_commands_of_the_readme_are_run():
    run = [line.split()[1] for line, reason in runner.commands((runner.ROOT / 'README.md').read_text()) if not reason]
    assert {'scripts/corpus.py', 'search.py', 'augment.py'} <= {*run}


def test_placeholders_are_filled_in():
    line = runner.fill_in('python search.py --name x --dataset iemocap --data_path DIR')
    assert line.endswith(' search.py --name x --dataset iemocap --data_path corpora/iemocap --epochs 1')
    assert runner.fill_in('python scripts/draw_genotype.py runs/search/NAME').endswith(' runs/search/mine')
    assert runner.fill_in('cat a.wav | python x.py RUN -') == f'cat a.wav | {sys.executable} x.py runs/augment/mine -'
