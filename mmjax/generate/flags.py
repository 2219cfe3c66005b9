"""Command-line flags of decoding: one for each field of `GenerationConfig` but the tokens, which
are the model's own.

Called from a script, these show in its ``--help`` as if it had defined them itself.
"""

import dataclasses

from absl import flags

from mmjax.generate.config import RULES, GenerationConfig
from mmjax.generate.tasks import TASKS

_HELP = dict(
    max_new_tokens="tokens of an answer at most",
    min_new_tokens="no end of an answer before as many tokens",
    do_sample="draw tokens; without it the best is taken",
    temperature="divides the scores before drawing; needs --do_sample",
    top_k="draw from as many of the best tokens only, 0 for all; needs --do_sample",
    top_p="draw from the best tokens that together have this probability; needs --do_sample",
    repetition_penalty="scores of tokens that were said before are divided by it; 1 for none",
    no_repeat_ngram_size="no run of as many tokens is said twice; 0 for off",
    num_beams="beams of a beam search; 1 for none",
    length_penalty="a beam's score is its log probability / length ** length_penalty",
    early_stopping="whether a beam search stops when --num_beams beams are finished; never: only "
    "when no better one can come",
    num_return_sequences="answers to each prompt: drawn ones, or the best beams",
    rules="the release of transformers whose rules are followed where releases differ",
)
_STOPPING = {"true": True, "false": False, "never": "never"}

flags.disclaim_key_flags()


def define_decoding(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags with the names and defaults of `GenerationConfig`, and one for a task of a paper."""
    flags.DEFINE_enum(
        "decoding_task",
        None,
        [*TASKS],
        "decode as a paper does for this task, but for the settings that are given",
        flag_values=values,
    )
    fields = {field.name: field for field in dataclasses.fields(GenerationConfig)}
    plain = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    choices = {"early_stopping": [*_STOPPING], "rules": [*RULES]}
    for name, meaning in _HELP.items():
        default = fields[name].default
        if name in choices:
            flags.DEFINE_enum(
                name,
                str(default).lower(),
                choices[name],
                meaning,
                flag_values=values,
                case_sensitive=False,
            )
        else:
            plain[fields[name].type](name, default, meaning, flag_values=values)


def decoding(
    values: flags.FlagValues = flags.FLAGS, *, base: GenerationConfig | None = None
) -> GenerationConfig:
    """``base``, or the task that was named, with the settings that were given on the command line.

    Raises:
      ValueError: lists all that is wrong with them.
    """
    given = {name: values[name].value for name in _HELP if values[name].present}
    if "early_stopping" in given:
        given["early_stopping"] = _STOPPING[given["early_stopping"]]
    if (task := values["decoding_task"].value) is not None:
        base = GenerationConfig(**TASKS[task])
    return dataclasses.replace(base or GenerationConfig(), **given)
