"""Tiny random checkpoints, as transformers and LMEye's own scripts save them."""

import pytest
import torch
import transformers

D, JOINT, P, K = 32, 16, 5, 5
NET = {
    "embedding_img": (1, D),
    "embedding_imgd": (1, D),
    "imgLinear.weight": (D, JOINT),
    "imgLinear.bias": (D,),
    "promptMlp.weight": (P * JOINT, JOINT),
    "promptMlp.bias": (P * JOINT,),
    "llm2clip.weight": (JOINT, D),
    "llm2clip.bias": (JOINT,),
    "imgdLinear.weight": (K * D, JOINT),
    "imgdLinear.bias": (K * D,),
}
NET_STAGE1 = {"new_embedding": (1, D), "imageLinear.weight": (D, JOINT), "imageLinear.bias": (D,)}


def random_parameters(shapes, seed=0):
    """fp16 `torch.nn.Parameter`s, as LMEye saves them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.nn.Parameter(torch.randn(s, generator=generator).half())
        for key, s in shapes.items()
    }


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=90,
        hidden_size=D,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=5000.0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)
    text = {"vocab_size": 50, "hidden_size": JOINT, "intermediate_size": 30, "num_hidden_layers": 2}
    text |= {
        "num_attention_heads": 4,
        "max_position_embeddings": 20,
        "eos_token_id": 49,
        "bos_token_id": 48,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision |= {"image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=JOINT)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def net():
    return random_parameters(NET)


@pytest.fixture
def net_stage1():
    return random_parameters(NET_STAGE1, seed=3)
