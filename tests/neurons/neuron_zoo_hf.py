"""Hugging Face architectures with tiny random configurations."""

from __future__ import annotations

from typing import Any

import torch
from neuron_zoo import ZOO, Architecture, Example, rand

IDS = torch.tensor([[5, 7, 9, 11, 2], [3, 1, 4, 1, 5]])
DECODER = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
ENCODER = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
           "max_position_embeddings": 32, "pad_token_id": 0}  # fmt: skip
IMAGE = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}


def hf(name: str, model: str, settings: dict[str, Any], inputs: Any = None, **expected: list[int]) -> None:
    """Register `transformers.<model>` built from its own config class with `settings`."""

    def build() -> Example:
        import transformers

        kind = getattr(transformers, model)
        config = kind.config_class(**settings)
        args, kwargs = ((), inputs()) if callable(inputs) else ((IDS,), {})
        return Example(kind(config), args, kwargs)

    build.__module__ = __name__
    ZOO[name] = Architecture(build, {kind: sorted(sizes) for kind, sizes in expected.items()})


def pixels(size: int = 8) -> Any:
    return lambda: {"pixel_values": rand(2, 3, size, size)}


GPT2 = {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 20}
hf("gpt2", "GPT2LMHeadModel", GPT2, hidden=[20, 20], head=[4, 4], head_dim=[6] * 4, residual=[24])
hf("bert", "BertForSequenceClassification", ENCODER, hidden=[20, 20, 24], head=[4, 4], head_dim=[6] * 4, residual=[24])
hf("bert_mlm", "BertForMaskedLM", ENCODER, hidden=[20, 20], head=[4, 4], head_dim=[6] * 4, residual=[24])
hf(
    "roberta",
    "RobertaForMaskedLM",
    ENCODER | {"pad_token_id": 1},
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "distilbert",
    "DistilBertForMaskedLM",
    {"vocab_size": 50, "dim": 24, "hidden_dim": 20, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32},
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "albert",
    "AlbertForMaskedLM",
    ENCODER | {"embedding_size": 10},
    hidden=[10, 20],
    head=[4],
    head_dim=[6, 6],
    residual=[24],
)
hf(
    "electra",
    "ElectraForPreTraining",
    ENCODER | {"embedding_size": 10},
    hidden=[10, 20, 20, 24],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "deberta_v2",
    "DebertaV2ForMaskedLM",
    ENCODER
    | {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "modernbert",
    "ModernBertForMaskedLM",
    ENCODER | {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    hidden=[20, 20],
    head=[4, 4],
    residual=[24],
)
T5 = {
    "vocab_size": 50,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 20,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
SEQ = lambda: {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}  # noqa: E731
hf("t5", "T5ForConditionalGeneration", T5, SEQ, hidden=[20, 20, 20, 20], head=[4, 4, 4, 4], head_dim=[6] * 12)
hf(
    "mt5_gated",
    "MT5ForConditionalGeneration",
    T5 | {"feed_forward_proj": "gated-gelu"},
    SEQ,
    hidden=[20, 20, 20, 20],
    head=[4, 4, 4, 4],
    head_dim=[6] * 12,
)
BART = {
    "vocab_size": 50,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "forced_eos_token_id": None,
}
hf("bart", "BartForConditionalGeneration", BART, SEQ, hidden=[20, 20, 20, 20], head=[4] * 6, head_dim=[6] * 12)
hf(
    "pegasus",
    "PegasusForConditionalGeneration",
    BART | {"pad_token_id": 0},
    SEQ,
    hidden=[20, 20, 20, 20],
    head=[4] * 6,
    head_dim=[6] * 12,
)
hf("llama", "LlamaForCausalLM", DECODER, hidden=[20, 20], head=[2, 2, 2, 2], head_dim=[6, 6], residual=[24])
hf(
    "mistral",
    "MistralForCausalLM",
    DECODER | {"sliding_window": 4},
    hidden=[20, 20],
    head=[2, 2, 2, 2],
    head_dim=[6, 6],
    residual=[24],
)
hf("qwen2", "Qwen2ForCausalLM", DECODER, hidden=[20, 20], head=[2, 2, 2, 2], head_dim=[6, 6], residual=[24])
hf(
    "qwen3",
    "Qwen3ForCausalLM",
    DECODER | {"head_dim": 8},
    hidden=[20, 20],
    head=[2, 2, 2, 2],
    head_dim=[8, 8],
    residual=[24],
)
hf(
    "gemma2",
    "Gemma2ForCausalLM",
    DECODER | {"head_dim": 8, "query_pre_attn_scalar": 8},
    hidden=[20, 20],
    head=[2, 2, 2, 2],
    head_dim=[8, 8],
    residual=[24],
)
hf(
    "gemma3",
    "Gemma3ForCausalLM",
    DECODER | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    hidden=[20, 20],
    head=[2, 2, 2, 2],
    head_dim=[8, 8],
    residual=[24],
)
hf(
    "phi",
    "PhiForCausalLM",
    DECODER | {"hidden_size": 32},
    hidden=[20, 20],
    head=[2, 2, 2, 2],
    head_dim=[4, 4, 8, 8],
    residual=[32],
)
hf("phi3", "Phi3ForCausalLM", DECODER, hidden=[20, 20], head=[2, 2, 2, 2], head_dim=[6, 6], residual=[24])
hf("olmo2", "Olmo2ForCausalLM", DECODER, hidden=[20, 20], head=[2, 2, 2, 2], head_dim=[6, 6], residual=[24])
hf("granite", "GraniteForCausalLM", DECODER, hidden=[20, 20], head=[2, 2, 2, 2], head_dim=[6, 6], residual=[24])
hf("cohere", "CohereForCausalLM", DECODER, hidden=[20, 20], head=[2, 2, 2, 2], head_dim=[6, 6], residual=[24])
hf("stablelm", "StableLmForCausalLM", DECODER, hidden=[20, 20], head=[2, 2, 2, 2], head_dim=[5, 5, 6, 6], residual=[24])
hf(
    "mixtral",
    "MixtralForCausalLM",
    DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2},
    hidden=[20, 20],
    head=[2, 2, 2, 2],
    head_dim=[6, 6],
    expert=[4, 4],
    residual=[24],
)
hf(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    DECODER | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8},
    hidden=[12, 12],
    head=[2, 2, 2, 2],
    head_dim=[8, 8],
    expert=[4, 4],
    residual=[24],
)
hf(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    DECODER
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 14},
    hidden=[12, 12, 14, 14],
    head=[2, 2, 2, 2],
    head_dim=[6, 6],
    expert=[4, 4],
    residual=[24],
)
hf(
    "gpt_oss",
    "GptOssForCausalLM",
    DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    hidden=[20, 20],
    head=[2, 2, 2, 2],
    head_dim=[8, 8],
    expert=[4, 4],
    residual=[24],
)
hf(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    DECODER
    | {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "q_lora_rank": 7,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 6,
        "v_head_dim": 5,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    hidden=[7, 7, 8, 8, 12, 12, 20],
    head=[4, 4],
    head_dim=[5, 5, 6, 6],
    expert=[2, 2],
    residual=[24],
)
hf(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    DECODER
    | {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "q_lora_rank": 7,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 6,
        "v_head_dim": 5,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    hidden=[7, 7, 8, 8, 12, 20, 24],
    head=[4, 4],
    head_dim=[5, 5, 6, 6],
    expert=[4],
    residual=[24],
)
hf(
    "olmoe",
    "OlmoeForCausalLM",
    DECODER | {"num_experts": 4, "num_experts_per_tok": 2},
    hidden=[20, 20],
    head=[2, 2, 2, 2],
    head_dim=[6, 6],
    expert=[4, 4],
    residual=[24],
)
hf(
    "falcon",
    "FalconForCausalLM",
    {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_hidden_size": 20,
        "alibi": False,
    },
    hidden=[20, 20],
    head=[4, 4],
    residual=[24],
)
hf(
    "falcon_new",
    "FalconForCausalLM",
    {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "ffn_hidden_size": 20,
        "alibi": False,
    },
    hidden=[20, 20],
    head=[2, 2, 2, 2],
    residual=[24],
)
hf(
    "bloom",
    "BloomForCausalLM",
    {"vocab_size": 50, "hidden_size": 24, "n_layer": 2, "n_head": 4},
    hidden=[96, 96],
    head_dim=[6, 6],
    residual=[24],
)
hf(
    "mpt",
    "MptForCausalLM",
    {"vocab_size": 50, "d_model": 24, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 32},
    hidden=[96, 96],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    ENCODER | {"rotary_pct": 0.5},
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[2, 2, 6, 6],
    residual=[24],
)
hf(
    "gpt_neo",
    "GPTNeoForCausalLM",
    {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 20,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 3,
        "max_position_embeddings": 32,
    },
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "gptj",
    "GPTJForCausalLM",
    {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4, "n_inner": 20},
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[2, 2, 6, 6],
    residual=[24],
)
hf(
    "opt",
    "OPTForCausalLM",
    {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 20,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 24,
    },
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "codegen",
    "CodeGenForCausalLM",
    {
        "vocab_size": 50,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "rotary_dim": 4,
        "n_inner": 20,
        "n_ctx": 32,
    },
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[4, 4, 8, 8],
    residual=[32],
)
hf(
    "xlnet",
    "XLNetLMHeadModel",
    {"vocab_size": 50, "d_model": 24, "n_layer": 2, "n_head": 4, "d_inner": 20},
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
)
hf(
    "mamba",
    "MambaForCausalLM",
    {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 5, "time_step_rank": 3},
    hidden=[3, 3, 5, 5],
    channel=[32, 32],
    residual=[16],
)
hf(
    "mamba2",
    "Mamba2ForCausalLM",
    {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "state_size": 5,
        "num_heads": 4,
        "head_dim": 8,
        "expand": 2,
        "n_groups": 2,
        "chunk_size": 4,
    },
    head=[2, 2, 2, 2],
    head_dim=[5, 5, 8, 8],
    residual=[16],
)
hf(
    "rwkv",
    "RwkvForCausalLM",
    {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "attention_hidden_size": 24,
        "intermediate_size": 20,
        "context_length": 32,
        "use_cache": False,
    },
    hidden=[20, 20, 24, 24],
    residual=[24],
)
hf("fnet", "FNetForMaskedLM", ENCODER | {"tpu_short_seq_length": 5}, hidden=[20, 20, 24])
hf(
    "vit",
    "ViTForImageClassification",
    IMAGE,
    pixels(),
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "deit",
    "DeiTForImageClassification",
    IMAGE,
    pixels(),
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "beit",
    "BeitForImageClassification",
    IMAGE | {"use_relative_position_bias": True},
    pixels(),
    hidden=[20, 20],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "dinov2",
    "Dinov2ForImageClassification",
    IMAGE,
    pixels(),
    hidden=[96, 96],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "swin",
    "SwinForImageClassification",
    {"image_size": 16, "patch_size": 2, "embed_dim": 12, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2},
    pixels(16),
    hidden=[48, 48, 96],
    head=[2, 2, 4],
    head_dim=[6] * 6,
    residual=[12, 24],
)
hf(
    "convnext",
    "ConvNextForImageClassification",
    {"hidden_sizes": [8, 12], "depths": [1, 2], "num_stages": 2, "patch_size": 2},
    pixels(16),
    hidden=[32, 48, 48],
    residual=[8, 12],
)
hf(
    "resnet_hf",
    "ResNetForImageClassification",
    {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 2], "layer_type": "basic"},
    pixels(32),
    channel=[8, 12, 12],
    residual=[8, 12],
)
hf(
    "mobilenet_v2",
    "MobileNetV2ForImageClassification",
    {"image_size": 32, "depth_multiplier": 0.25},
    pixels(32),
    channel=[8, 8, 48, 48, 48, 48, 48, 48, 80, 96, 96, 96, 96, 144, 144, 144, 240, 240, 240, 1280],
    residual=[8, 8, 16, 24, 40],
)
hf(
    "segformer",
    "SegformerForImageClassification",
    {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 12],
        "num_attention_heads": [2, 3],
        "mlp_ratios": [2, 2],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "decoder_hidden_size": 8,
    },
    pixels(16),
    channel=[8, 16, 24],
    head=[2, 3],
    head_dim=[4, 4, 4, 4],
    residual=[8, 12],
)
TEXT = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
hf(
    "clip",
    "CLIPModel",
    {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 10},
    lambda: {"input_ids": IDS, "pixel_values": rand(2, 3, 8, 8), "attention_mask": torch.ones_like(IDS)},
    hidden=[20, 20, 20],
    head=[4, 4, 4],
    head_dim=[6] * 6,
)
hf(
    "siglip",
    "SiglipModel",
    {"text_config": TEXT, "vision_config": IMAGE},
    lambda: {"input_ids": IDS, "pixel_values": rand(2, 3, 8, 8)},
    hidden=[6, 20, 20, 20, 20],
    head=[4, 4, 4, 4],
    head_dim=[6] * 6,
)
hf(
    "whisper",
    "WhisperForConditionalGeneration",
    {
        "vocab_size": 50,
        "d_model": 24,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 20,
        "decoder_ffn_dim": 20,
        "num_mel_bins": 6,
        "max_source_positions": 8,
        "max_target_positions": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    },
    lambda: {"input_features": rand(2, 6, 16), "decoder_input_ids": IDS},
    hidden=[20, 20],
    channel=[24],
    head=[4, 4, 4],
    head_dim=[6] * 6,
    residual=[24],
)
hf(
    "wav2vec2",
    "Wav2Vec2ForCTC",
    {
        "vocab_size": 20,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "conv_dim": [8, 8],
        "conv_stride": [2, 2],
        "conv_kernel": [3, 3],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "num_feat_extract_layers": 2,
    },
    lambda: {"input_values": rand(2, 64)},
    hidden=[20, 20],
    channel=[8, 8],
    head=[4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[2, 12],
)
hf("vit_mae", "ViTMAEModel", IMAGE, pixels(), hidden=[20, 20], head=[4, 4], head_dim=[6, 6, 6, 6])
hf(
    "timesformer",
    "TimesformerForVideoClassification",
    IMAGE | {"num_frames": 2},
    lambda: {"pixel_values": rand(1, 2, 3, 8, 8)},
    hidden=[20, 20, 24, 24],
    head=[4, 4, 4, 4],
    head_dim=[6, 6, 6, 6],
    residual=[24],
)
hf(
    "perceiver",
    "PerceiverForMaskedLM",
    {
        "vocab_size": 50,
        "d_model": 16,
        "d_latents": 16,
        "num_latents": 6,
        "num_blocks": 1,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "max_position_embeddings": 5,
        "qk_channels": 8,
        "v_channels": 16,
        "cross_attention_widening_factor": 1,
        "cross_attention_shape_for_attention": "kv",
    },
    hidden=[16, 16, 16, 16],
    head=[2, 2, 8],
    head_dim=[2, 4, 4, 8, 8, 32],
    residual=[6, 16, 16],
)
hf(
    "llama4_text",
    "Llama4ForCausalLM",
    DECODER
    | {
        "intermediate_size_mlp": 14,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "head_dim": 8,
        "attention_chunk_size": 4,
        "interleave_moe_layer_step": 2,
    },
    hidden=[14, 20, 20],
    head=[2, 2, 2, 2],
    head_dim=[8, 8],
    expert=[4],
    residual=[24],
)
