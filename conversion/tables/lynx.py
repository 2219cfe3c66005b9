"""Lynx (Lynx reference, section 6).

`trained` is what its files hold at least: resampler, adapters, frame embedding. `full` is the state
of the whole model; files may hold any part of it. ``every``: which layers have adapters
(`mmjax.models.llama.LlamaConfig.adapter_every`).
"""

from conversion.ops import FrameTable
from conversion.rules import Rule, Table
from conversion.tables import eva_vit, llama
from conversion.tables.resampler import RESAMPLER

TOWER = eva_vit.LYNX.under(source_prefix="vision_encoder.")
FRAMES = Table(rules=(Rule("absolute_frame_pos_embed", "frame_embedding", FrameTable()),))


def trained(every: int) -> Table:
    bridge = RESAMPLER.under(source_prefix="bridge.", path_prefix="resampler.")
    if not every:
        return FRAMES + bridge
    adapters = llama.adapters(every).under(source_prefix="LLM.", path_prefix="language.")
    return FRAMES + bridge + adapters


def frozen() -> Table:
    """The tower and the language model without its adapters."""
    language = llama.LLAMA.under(source_prefix="LLM.", path_prefix="language.")
    return TOWER.under(path_prefix="vision.") + language


def full(every: int) -> Table:
    return trained(every) + frozen()
