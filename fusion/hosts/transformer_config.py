"""The config of the toolkits' Transformer, and what of it transformers' own Marian can be."""

from __future__ import annotations

from torch import Tensor
from transformers import MarianConfig, PreTrainedModel

from fusion.errors import ModelError


class TransformerConfig(MarianConfig):  # type: ignore[misc]
    """MarianConfig with the switches of the other toolkits.

    Attributes:
        encoder_normalize_before, decoder_normalize_before: pre-norm instead of post-norm
        encoder_final_norm, decoder_final_norm: a norm after the last layer
        normalize_embeddings: a norm after tokens and positions were added
        position_embeddings: whether there are positions
        encoder_learned_positions, decoder_learned_positions: trained tables
        position_layout: `tensor2tensor`: sin | cos, 10000^(-i / (D/2 - 1)); `halves`: sin | cos,
            10000^(-2i / D); `interleaved`: the same, sin and cos by turns
        position_offset: the first token's position; the row before it is that of padding
        max_target_positions: of the decoder, where it differs from `max_position_embeddings`
        attention_bias: biases of the attention's projections
    """

    model_type = "fusion_transformer"

    encoder_normalize_before: bool = False
    decoder_normalize_before: bool = False
    encoder_final_norm: bool = False
    decoder_final_norm: bool = False
    normalize_embeddings: bool = False
    position_embeddings: bool = True
    encoder_learned_positions: bool = False
    decoder_learned_positions: bool = False
    position_layout: str = "tensor2tensor"
    position_offset: int = 0
    max_target_positions: int | None = None
    attention_bias: bool = True
    layer_norm_eps: float = 1e-5
    activation_function: str = "relu"
    scale_embedding: bool = True


def to_marian(model: PreTrainedModel) -> tuple[MarianConfig, dict[str, Tensor]]:
    """The same model as a plain `MarianMTModel`: its config and all its tensors.

    Logits are the same for inputs without padding on the left. The position tables are written
    into the file: Marian's class would compute others. It reads them, but does not save them
    again, so a Marian model that was trained on and saved has lost them.

    Raises:
        ModelError: names what Marian's class cannot do.
    """
    config = model.config
    plain = {
        "encoder_normalize_before": False,
        "decoder_normalize_before": False,
        "encoder_final_norm": False,
        "decoder_final_norm": False,
        "normalize_embeddings": False,
        "encoder_learned_positions": False,
        "decoder_learned_positions": False,
        "position_embeddings": True,
        "attention_bias": True,
        "layer_norm_eps": 1e-5,
        "max_target_positions": None,
    }
    for key, wanted in plain.items():
        if getattr(config, key) != wanted:
            raise ModelError(
                f"transformers' Marian has no {key}: {getattr(config, key)}; export to hf instead"
            )
    known = MarianConfig().to_dict()
    left_out = ("model_type", "architectures", "transformers_version")
    fields = {k: v for k, v in config.to_dict().items() if k in known and k not in left_out}
    tensors = dict(model.state_dict())
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_positions.weight"
        tensors[name] = tensors[name][config.position_offset :].clone()
    return MarianConfig(**fields), tensors
