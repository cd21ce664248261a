import pytest
from transformers.utils import logging

from fuse.quiet import quiet_loading


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_what_was_set_before_holds_again(shown: bool, level: int) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity(level)
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        with pytest.raises(KeyError), quiet_loading():
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
            raise KeyError
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, shown)
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()
