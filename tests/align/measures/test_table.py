import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuse.align import Unmeasurable
from fuse.align.measures.table import MEASURES
from tests.align.oracles import alike, normal


@pytest.mark.parametrize("name", MEASURES)
def test_each_row_has_a_sentence_and_each_file_a_source(name):
    measure = MEASURES[name]
    assert measure.doc.endswith(".") and measure.closer in ("higher", "lower", "")
    assert re.search(r"arXiv|JMLR|EUSIPCO", Path(inspect.getfile(measure.load())).read_text(encoding="utf-8"))


def first_number(name, x, y):
    function = MEASURES[name].load()
    value = function(x) if name in ("effective_rank", "participation") else function(x, y)
    if isinstance(value, float):
        return value
    return value[{"cka": 1, "rbf_cka": 1, "participation": 1}.get(name, 0)]


@pytest.mark.parametrize("name", MEASURES)
def test_values_are_in_range_and_closer_is_closer(name):
    measure = MEASURES[name]
    x = alike(0, 80, 6, 6)[0]
    near, far = (first_number(name, x, x + scale * normal(1, 80, 6)) for scale in (0.1, 3))
    for value in (near, far):
        assert measure.low is None or value >= measure.low
        assert measure.high is None or value <= measure.high
    if measure.closer and name != "cosine_of_means":
        assert (near > far) == (measure.closer == "higher")


@pytest.mark.parametrize("name", MEASURES)
def test_the_least_samples_and_the_common_space_are_what_the_function_asks_for(name):
    measure = MEASURES[name]
    least = measure.least(3, 3, 10)
    x, y = normal(0, 40, 3), normal(1, 40, 3)
    enough = least if name != "svcca" else 7  # it also needs more than the directions it keeps
    first_number(name, x[:enough], y[:enough])
    with pytest.raises(Unmeasurable, match=rf"needs at least {least} samples?, not {least - 1}$"):
        first_number(name, x[: least - 1], y[: least - 1])
    if measure.needs_common_space:
        with pytest.raises(Unmeasurable, match=r"needs a common space, not 3 and 2 features$"):
            first_number(name, x, y[:, :2])
    elif measure.closer:
        first_number(name, x, y[:, :2])


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.streams])
def test_what_streams_adds_up_batches(name):
    module, _, streams = MEASURES[name].streams.partition(":")
    adding = getattr(__import__(f"fuse.align.measures.{module}", fromlist=[streams]), streams)()
    assert callable(adding.add) and callable(adding.value)


def test_the_table_needs_no_torch():
    code = "import sys, fuse.align.measures.table; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
