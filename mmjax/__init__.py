"""mmjax: the 2023 multimodal LLMs on JAX."""
