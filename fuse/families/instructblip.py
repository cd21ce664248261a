"""InstructBLIP: BLIP-2 whose Q-Former also reads the instruction."""

from dataclasses import replace

from fuse.families.blip2 import FAMILY as BLIP2

FAMILY = replace(BLIP2, model_type="instructblip")
