"""What a member, and so a branch, may be called: names become parts of tensor names, token names and folder names."""

import re

NAME = re.compile(r"[A-Za-z][\w-]{0,63}", re.ASCII)
WORDS = frozenset({"base", "merge", "union"})  # have a meaning in recipes

# What torch's modules call their own parts: a branch of that name could not be one of them.
TAKEN = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module
    register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state
    set_submodule share_memory state_dict to to_empty train training type update values xpu zero_grad
    """.split()
)


def mistake_in(name: object) -> str | None:
    """Why a name cannot be, or None."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return "a name is a letter followed by letters, digits, - or _"
    if name in WORDS:
        return "the word has a meaning in recipes"
    return "torch's modules keep the word for themselves" if name in TAKEN else None
