"""Lets tests import the zoo's scripts, which import each other as siblings."""

import sys
from pathlib import Path

TOOLS = Path(__file__).parent.parent / "tools"
if str(TOOLS) not in sys.path:
    sys.path.insert(0, str(TOOLS))
