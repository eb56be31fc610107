"""The text that records which visual tokens a sample kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import PrunebenchError
from harness.core.keeps import Stage, decode, encode


@given(st.lists(st.lists(st.booleans(), min_size=21, max_size=21), max_size=4))
def test_decode_gives_back_what_encode_wrote(masks):
    stages = [Stage(2 * i, np.array(m), i) for i, m in enumerate(masks)]
    back = decode(encode(stages), 21)
    assert [(s.layer, s.added, s.keep.tolist()) for s in back] == [(s.layer, s.added, s.keep.tolist()) for s in stages]


@pytest.mark.parametrize("text", ["0:0", "x:0:*", "0:0:AAAA", "0:0:?"])
def test_a_text_of_another_kind_is_refused(text):
    with pytest.raises(PrunebenchError, match="kept tokens"):
        decode(text, 576)
