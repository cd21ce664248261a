"""Whether a model that has eyes can be shown a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse import families, strict_json
from fuse.errors import CheckpointError

ALONE, INSIDE = "preprocessor_config.json", "processor_config.json"  # where an image processor is described


def check_sight(folder: Path, config: Mapping[str, Any]) -> None:
    """CheckpointError for a folder of a class that sees and of no image processor: it would answer, and never see.

    The branches of a fused folder have theirs as it loads; original layouts take theirs from their tower.
    """
    if config.get("model_type") == "fuse":
        return
    family = families.family_of(config, str(folder))
    if not family.native or not family.vision or (folder / ALONE).is_file():
        return
    if not (folder / INSIDE).is_file() or not strict_json.read_object(folder / INSIDE).get("image_processor"):
        told = f"has no image processor, so the {family.model_type} in it cannot see"
        hint = f"copy {ALONE} or {INSIDE} from the member whose eyes it has"
        raise CheckpointError(told, where=folder, hint=hint)
