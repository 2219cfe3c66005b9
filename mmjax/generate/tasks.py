"""How the papers decode, by task: settings of `GenerationConfig` under a name.

Lynx's are its Table 6 (reference, section 3). Where it does not sample, its top-p and top-k have no
effect and are left out, as is the length penalty of a single beam. Lengths counted the beginning of
the text: of at least 2 tokens, 1 is new.
"""

from collections.abc import Mapping
from typing import Any

_LYNX = dict(min_new_tokens=1, rules="transformers-4.28")
_DRAWN = dict(do_sample=True, top_p=0.9, top_k=3, no_repeat_ngram_size=3)
_SHORT = dict(max_new_tokens=64, num_beams=5, length_penalty=-2.0, no_repeat_ngram_size=2)

TASKS: Mapping[str, Mapping[str, Any]] = {
    "lynx-image-description": _LYNX | _SHORT,
    "lynx-open-vqa-image": _LYNX | _SHORT,
    "lynx-video-description": _LYNX | _DRAWN | dict(max_new_tokens=128),
    "lynx-open-vqa-video": _LYNX
    | dict(max_new_tokens=128, num_beams=3, length_penalty=-1.0, no_repeat_ngram_size=3),
    "lynx-owleval-description": _LYNX | _DRAWN | dict(max_new_tokens=128),
    "lynx-owleval": _LYNX | _DRAWN | dict(max_new_tokens=256, num_beams=3),
}
