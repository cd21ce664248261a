"""A plan for people (a tree and a table, layers folded) and for programs (JSON)."""

from fuse.plan_view.document import plan_json
from fuse.plan_view.text import plan_text

__all__ = ["plan_json", "plan_text"]
