"""A language model built by hand, whose next-token distribution is known exactly."""

import numpy as np


def planted_model(entropies):
    """A hand-built Llama whose next-token distribution depends on the last token alone, exactly.

    Blocks write nothing, so the final norm sees the embedding of the last token; embeddings are one-hot, and the head
    gives the token's row of log-probabilities. After the word `w` the next token is uniform over `entropies[w]` tokens.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lmprobe.organisms.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0,
        tie_word_embeddings=False, rms_norm_eps=0.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    vocabulary = tokenizer.get_vocab()
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        logits = torch.full((size, size), -1e4)
        common = list(range(50, size))
        logits[:, common[:4]] = 0.0  # every other token: uniform over 4
        for word, n in entropies.items():
            logits[vocabulary[word]] = -1e4
            logits[vocabulary[word], common[:n]] = 0.0
        model.lm_head.weight.copy_(logits.T / np.sqrt(size))  # the norm scales a one-hot state by sqrt(size)
    return model, tokenizer
