"""BLIP-2's seeing half as LAVIS and as transformers name it (MiniGPT-4 reference, sections 2, 3 and
8; LMEye reference, section 4)."""

from conversion.ops import Squeeze
from conversion.rules import Ignore, Rule, Table
from conversion.tables import eva_vit, qformer
from conversion.tables.torch_layers import norm


def bridge(cross_every: int = qformer.CROSS_EVERY) -> Table:
    """What MiniGPT-4 and Cheetor take from a BLIP-2 file of LAVIS: all but the tower."""
    own = Table(rules=(Rule("query_tokens", "queries", Squeeze()), *norm("ln_vision", "norm")))
    table = qformer.lavis(cross_every)
    return own + table.under(source_prefix="Qformer.", path_prefix="qformer.")


def lavis(cross_every: int = qformer.CROSS_EVERY) -> Table:
    tower = eva_vit.EVA.under(source_prefix="visual_encoder.", path_prefix="vision.")
    return tower + bridge(cross_every)


BRIDGE, LAVIS = bridge(), lavis()

# The file holds more; a table to add where it is read for a model without the text branch.
BRIDGE_FILE_REST = Table(
    ignore=(
        Ignore(r"(t5|opt)_(proj|model)\..*", "BLIP-2's own language model and the way to it"),
        Ignore(r"visual_encoder\..*", "the tower is a checkpoint of its own"),
        Ignore(
            r"Qformer\.(cls\..*|bert\.embeddings\.(word|position)_embeddings\.weight"
            r"|bert\.encoder\.layer\.\d+\.(intermediate|output)\..*)",
            "the text branch, which the queries never use",
        ),
        Ignore(r"((itm_head|vision_proj|text_proj)\..*|temp)", "heads of BLIP-2's first stage"),
    )
)

HF_SEEING = (
    eva_vit.HF.under(source_prefix="vision_model.", path_prefix="vision.")
    + qformer.HF.under(source_prefix="qformer.", path_prefix="qformer.")
    + Table(
        rules=(
            Rule("query_tokens", "queries", Squeeze()),
            *norm("vision_model.post_layernorm", "norm"),
        )
    )
)

HF = (
    HF_SEEING
    + qformer.HF_TEXT.under(path_prefix="qformer.")
    + Table(
        ignore=(
            Ignore(
                r"language_(model|projection)\..*",
                "the language model and the way to it: a system imports them as parts of their own",
            ),
            Ignore(
                r"(vision_projection|text_projection|itm_head)\..*",
                "heads of BLIP-2's first stage",
            ),
        ),
    )
)
