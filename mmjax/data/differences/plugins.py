"""The parts that make pairs, by name.

segmenter    easy-vqa                 the shape and the background, by colour
text_model   easy-vqa                 one edit of the shape, drawn at random
             chat-api                 a model behind an OpenAI-compatible address, see
                                      `mmjax.data.differences.chat_api`
editor       easy-vqa                 draws what the text model easy-vqa describes
attention    blip-2                   a BLIP-2's, see `mmjax.train.looking`
filter                                none is built in

any of them  MODULE:ATTRIBUTE         your own: a class or function that, called with the
                                      options, gives an object as described in
                                      `mmjax.data.differences.interfaces`; MODULE must be
                                      importable (PYTHONPATH=FOLDER)
"""

from typing import Any

from mmjax.data.differences.chat_api import ChatAPI
from mmjax.data.differences.easy_vqa import RuleEditor, RuleSegmenter, RuleText
from mmjax.data.plugins import Known, load_part

BUILT_IN: dict[str, Known] = {
    "attention": {"blip-2": "mmjax.train.looking:Blip2Attention"},
    "segmenter": {"easy-vqa": RuleSegmenter},
    "text_model": {"easy-vqa": RuleText, "chat-api": ChatAPI},
    "editor": {"easy-vqa": RuleEditor},
    "filter": {},
}


def load(part: str, name: str) -> Any:
    """The ``part`` (a key of `BUILT_IN`) called ``name``; raises ValueError if there is none."""
    described = "mmjax/data/differences/interfaces.py"
    return load_part(part, name, BUILT_IN[part], described=described)
