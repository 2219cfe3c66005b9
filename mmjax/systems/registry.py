"""Systems by the name that configs and checkpoints call them."""

from mmjax.systems.cheetor import Cheetor
from mmjax.systems.foundation import Blip2Pretraining, Contrastive, LanguageModel
from mmjax.systems.lmeye import LMEye
from mmjax.systems.lynx import Lynx
from mmjax.systems.minigpt4 import MiniGPT4
from mmjax.systems.mplug_owl import MplugOwl
from mmjax.systems.system import System, config_from_dict

SYSTEMS: dict[str, type[System]] = {
    "lmeye": LMEye,
    "minigpt4": MiniGPT4,
    "cheetor": Cheetor,
    "lynx": Lynx,
    "mplug_owl": MplugOwl,
    "language_model": LanguageModel,
    "clip": Contrastive,
    "blip-2-pretraining": Blip2Pretraining,
}


def make_system(name: str, config: dict) -> System:
    """The system ``name`` with the config that `config_to_dict` gave.

    Raises:
      ValueError: a system, or config keys, that do not exist.
    """
    if name not in SYSTEMS:
        raise ValueError(f"there is no system {name!r}; there are {', '.join(SYSTEMS)}")
    return SYSTEMS[name](config_from_dict(SYSTEMS[name].Config, config))
