"""config.json: spellings of transformers 4 and 5, and what is refused."""

import pytest

from conversion.huggingface import clip_from_hf, config_from_hf, llama_from_hf, network_of
from conversion.io import SourceError
from mmjax.models.clip import ClipConfig
from mmjax.models.llama import LlamaConfig

LLAMA_7B = {
    "architectures": ["LLaMAForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": -1,
    "rms_norm_eps": 1e-06,
    "vocab_size": 32000,
}


def test_the_first_llama_config():
    assert llama_from_hf(LLAMA_7B) == LlamaConfig.llama_7b()


def test_rotary_base_in_both_spellings():
    assert llama_from_hf(LLAMA_7B | {"rope_theta": 5e5}).rope_base == 5e5
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert llama_from_hf(LLAMA_7B | new).rope_base == 5e5


def test_heads():
    config = llama_from_hf(
        LLAMA_7B | {"num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}
    )
    assert (config.num_kv_heads, config.head_dim, config.tied_head) == (8, 64, True)
    assert (
        llama_from_hf(LLAMA_7B | {"num_key_value_heads": 32, "head_dim": 128})
        == LlamaConfig.llama_7b()
    )


def test_what_a_llama_must_not_have_is_told_at_once():
    values = LLAMA_7B | {
        "hidden_act": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    del values["vocab_size"]
    with pytest.raises(SourceError) as caught:
        llama_from_hf(values)
    for part in (
        "hidden_act is 'gelu'",
        "attention_bias",
        "mlp_bias",
        "'linear'",
        "vocab_size is missing",
    ):
        assert part in str(caught.value)
    with pytest.raises(SourceError, match="'llama3'"):
        llama_from_hf(LLAMA_7B | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}})


def test_the_published_clip_config():
    # openai/clip-vit-large-patch14 gives everything twice; values may be left out.
    text = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "eos_token_id": 2,
    }
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
    }
    config = clip_from_hf(
        {
            "model_type": "clip",
            "projection_dim": 768,
            "text_config": {"hidden_size": 1, "eos_token_id": 2},
            "text_config_dict": text,
            "vision_config": vision | {"patch_size": 14},
            "vision_config_dict": None,
        }
    )
    assert config == ClipConfig.vit_l14()


def test_the_end_token_of_clip():
    assert clip_from_hf({"text_config": {"eos_token_id": 2}}).text.eos_token is None
    assert clip_from_hf({"text_config": {}}).text.eos_token == 49407


def test_what_a_clip_must_not_have():
    with pytest.raises(SourceError, match=r"text_config.hidden_act is 'relu'.*num_channels is 1"):
        clip_from_hf({"text_config": {"hidden_act": "relu"}, "vision_config": {"num_channels": 1}})


def test_which_network(tmp_path):
    assert network_of({"model_type": "clip"}, "x") == "clip"
    with pytest.raises(
        SourceError, match="model_type 'opt'; there are tables for llama, clip, blip"
    ):
        network_of({"model_type": "opt"}, "x")
    with pytest.raises(SourceError, match=r"no config\.json"):
        config_from_hf(tmp_path)
