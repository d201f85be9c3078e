"""The tensors of each family's checkpoints, as lines ``name rows [columns] [?flag]`` in the order of the model.

``{l}`` counts layers and ``{e}`` experts; rows and columns name sizes (``inner*2``: twice as many); a tensor with a
flag is there where the flag is set. The names are those of the checkpoints on the Hugging Face hub.
"""

from __future__ import annotations

__all__ = [
    "ATTENTION",
    "DENSE",
    "EXPERTS",
    "FALCON",
    "FIRST",
    "GPT2",
    "GPT_NEOX",
    "LAST",
    "MIXTRAL",
    "MLP",
    "NORMS",
    "OPT",
    "PHI3",
    "QK_NORM",
    "SANDWICH",
    "SHARED",
]

ATTENTION = """
model.layers.{l}.self_attn.q_proj.weight q hidden
model.layers.{l}.self_attn.q_proj.bias q ?qkv_bias
model.layers.{l}.self_attn.k_proj.weight kv hidden
model.layers.{l}.self_attn.k_proj.bias kv ?qkv_bias
model.layers.{l}.self_attn.v_proj.weight kv hidden
model.layers.{l}.self_attn.v_proj.bias kv ?qkv_bias
model.layers.{l}.self_attn.o_proj.weight hidden q
model.layers.{l}.self_attn.o_proj.bias hidden ?attention_bias
"""
MLP = """
model.layers.{l}.mlp.gate_proj.weight inner hidden ?dense
model.layers.{l}.mlp.gate_proj.bias inner ?mlp_bias
model.layers.{l}.mlp.up_proj.weight inner hidden ?dense
model.layers.{l}.mlp.up_proj.bias inner ?mlp_bias
model.layers.{l}.mlp.down_proj.weight hidden inner ?dense
model.layers.{l}.mlp.down_proj.bias hidden ?mlp_bias
"""
EXPERTS = """
model.layers.{l}.mlp.gate.weight experts hidden ?sparse
model.layers.{l}.mlp.experts.{e}.gate_proj.weight moe_inner hidden ?sparse
model.layers.{l}.mlp.experts.{e}.up_proj.weight moe_inner hidden ?sparse
model.layers.{l}.mlp.experts.{e}.down_proj.weight hidden moe_inner ?sparse
"""
SHARED = """
model.layers.{l}.mlp.shared_expert.gate_proj.weight shared_inner hidden ?sparse
model.layers.{l}.mlp.shared_expert.up_proj.weight shared_inner hidden ?sparse
model.layers.{l}.mlp.shared_expert.down_proj.weight hidden shared_inner ?sparse
model.layers.{l}.mlp.shared_expert_gate.weight one hidden ?sparse
"""
MIXTRAL = """
model.layers.{l}.block_sparse_moe.gate.weight experts hidden
model.layers.{l}.block_sparse_moe.experts.{e}.w1.weight inner hidden
model.layers.{l}.block_sparse_moe.experts.{e}.w2.weight hidden inner
model.layers.{l}.block_sparse_moe.experts.{e}.w3.weight inner hidden
"""
QK_NORM = """
model.layers.{l}.self_attn.q_norm.weight head
model.layers.{l}.self_attn.k_norm.weight head
"""
PHI3 = """
model.layers.{l}.self_attn.qkv_proj.weight qkv hidden
model.layers.{l}.self_attn.o_proj.weight hidden q
model.layers.{l}.mlp.gate_up_proj.weight inner*2 hidden
model.layers.{l}.mlp.down_proj.weight hidden inner
"""
NORMS = """
model.layers.{l}.input_layernorm.weight hidden
model.layers.{l}.post_attention_layernorm.weight hidden
"""
SANDWICH = """
model.layers.{l}.pre_feedforward_layernorm.weight hidden
model.layers.{l}.post_feedforward_layernorm.weight hidden
"""
FIRST = "model.embed_tokens.weight vocab hidden\n"
LAST = "model.norm.weight hidden\nlm_head.weight vocab hidden ?untied\n"
DENSE = FIRST + ATTENTION + MLP + NORMS + LAST

GPT2 = """
transformer.wte.weight vocab hidden
transformer.wpe.weight positions hidden
transformer.h.{l}.ln_1.weight hidden
transformer.h.{l}.ln_1.bias hidden
transformer.h.{l}.attn.c_attn.weight hidden hidden*3
transformer.h.{l}.attn.c_attn.bias hidden*3
transformer.h.{l}.attn.c_proj.weight hidden hidden
transformer.h.{l}.attn.c_proj.bias hidden
transformer.h.{l}.ln_2.weight hidden
transformer.h.{l}.ln_2.bias hidden
transformer.h.{l}.mlp.c_fc.weight hidden inner
transformer.h.{l}.mlp.c_fc.bias inner
transformer.h.{l}.mlp.c_proj.weight inner hidden
transformer.h.{l}.mlp.c_proj.bias hidden
transformer.ln_f.weight hidden
transformer.ln_f.bias hidden
lm_head.weight vocab hidden ?untied
"""
GPT_NEOX = """
gpt_neox.embed_in.weight vocab hidden
gpt_neox.layers.{l}.input_layernorm.weight hidden
gpt_neox.layers.{l}.input_layernorm.bias hidden
gpt_neox.layers.{l}.post_attention_layernorm.weight hidden
gpt_neox.layers.{l}.post_attention_layernorm.bias hidden
gpt_neox.layers.{l}.attention.query_key_value.weight hidden*3 hidden
gpt_neox.layers.{l}.attention.query_key_value.bias hidden*3 ?attention_bias
gpt_neox.layers.{l}.attention.dense.weight hidden hidden
gpt_neox.layers.{l}.attention.dense.bias hidden ?attention_bias
gpt_neox.layers.{l}.mlp.dense_h_to_4h.weight inner hidden
gpt_neox.layers.{l}.mlp.dense_h_to_4h.bias inner
gpt_neox.layers.{l}.mlp.dense_4h_to_h.weight hidden inner
gpt_neox.layers.{l}.mlp.dense_4h_to_h.bias hidden
gpt_neox.final_layer_norm.weight hidden
gpt_neox.final_layer_norm.bias hidden
embed_out.weight vocab hidden ?untied
"""
FALCON = """
transformer.word_embeddings.weight vocab hidden
transformer.h.{l}.ln_attn.weight hidden ?two_norms
transformer.h.{l}.ln_attn.bias hidden ?two_norms
transformer.h.{l}.ln_mlp.weight hidden ?two_norms
transformer.h.{l}.ln_mlp.bias hidden ?two_norms
transformer.h.{l}.input_layernorm.weight hidden ?one_norm
transformer.h.{l}.input_layernorm.bias hidden ?one_norm
transformer.h.{l}.post_attention_layernorm.weight hidden ?sequential
transformer.h.{l}.post_attention_layernorm.bias hidden ?sequential
transformer.h.{l}.self_attention.query_key_value.weight qkv hidden
transformer.h.{l}.self_attention.query_key_value.bias qkv ?bias
transformer.h.{l}.self_attention.dense.weight hidden hidden
transformer.h.{l}.self_attention.dense.bias hidden ?bias
transformer.h.{l}.mlp.dense_h_to_4h.weight inner hidden
transformer.h.{l}.mlp.dense_h_to_4h.bias inner ?bias
transformer.h.{l}.mlp.dense_4h_to_h.weight hidden inner
transformer.h.{l}.mlp.dense_4h_to_h.bias hidden ?bias
transformer.ln_f.weight hidden
transformer.ln_f.bias hidden
lm_head.weight vocab hidden ?untied
"""
OPT = """
model.decoder.embed_tokens.weight vocab hidden
model.decoder.embed_positions.weight learned hidden
model.decoder.layers.{l}.self_attn.q_proj.weight hidden hidden
model.decoder.layers.{l}.self_attn.q_proj.bias hidden
model.decoder.layers.{l}.self_attn.k_proj.weight hidden hidden
model.decoder.layers.{l}.self_attn.k_proj.bias hidden
model.decoder.layers.{l}.self_attn.v_proj.weight hidden hidden
model.decoder.layers.{l}.self_attn.v_proj.bias hidden
model.decoder.layers.{l}.self_attn.out_proj.weight hidden hidden
model.decoder.layers.{l}.self_attn.out_proj.bias hidden
model.decoder.layers.{l}.self_attn_layer_norm.weight hidden
model.decoder.layers.{l}.self_attn_layer_norm.bias hidden
model.decoder.layers.{l}.fc1.weight inner hidden
model.decoder.layers.{l}.fc1.bias inner
model.decoder.layers.{l}.fc2.weight hidden inner
model.decoder.layers.{l}.fc2.bias hidden
model.decoder.layers.{l}.final_layer_norm.weight hidden
model.decoder.layers.{l}.final_layer_norm.bias hidden
model.decoder.final_layer_norm.weight hidden
model.decoder.final_layer_norm.bias hidden
lm_head.weight vocab hidden ?untied
"""
