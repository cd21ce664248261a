"""`hf://org/name`: a repository of the hub that is read by ranges, as a folder of a store is.

A bare `org/name` comes in whole files through the hub's own cache (`fuse.hub`).
"""

from fuse.errors import RecipeError
from fuse.hub import HUB_ID, sentences
from fuse.stores.address import Address
from fuse.stores.cache import folder_of
from fuse.stores.listing import listed, small_of
from fuse.stores.members import StoreFolder


def open_hub(location: str, revision: str | None) -> StoreFolder | None:
    """The repository at the commit of the revision, with its small files here; None without a network.

    Raises RecipeError for what is no hub id, or a repository or revision that does not exist; MachineError where the
    hub cannot be reached.
    """
    hub_id = location.removeprefix("hf://")
    if not HUB_ID.fullmatch(hub_id):
        raise RecipeError(f"{location!r} is no repository of the hub", hint="such as hf://org/name")
    from huggingface_hub import HfApi, HfFileSystem, constants

    if constants.HF_HUB_OFFLINE:
        return None
    with sentences(hub_id, revision):
        commit = HfApi().model_info(hub_id, revision=revision).sha or ""
        org, name = hub_id.split("/")
        pinned = Address("hf", (org, f"{name}@{commit}"))
        system = HfFileSystem(skip_instance_cache=True)
        found = listed(system, pinned)
        opened = StoreFolder(pinned, commit, found, folder_of(Address("hf", (org, name)), commit), system, pinned=True)
        opened.read_small(small_of(found))
        return opened
