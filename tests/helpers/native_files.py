"""Native weight files made from transformers models: the inverse of the conversions under test.

Written as walks over modules rather than as rules on names. Weight norm is split into g and a v of
another length, and the model then gets the weight that torch makes of both, so that nothing is left
to rounding: the squares of v add up exactly, in whatever order a processor takes them.
"""

import torch
import transformers
from torch import nn


def dac_model(ratios=(2, 4), rate=8000, codebooks=3):
    config = transformers.DacConfig(
        encoder_hidden_size=4, decoder_hidden_size=16 if len(ratios) < 4 else 32,
        downsampling_ratios=list(ratios), n_codebooks=codebooks, codebook_size=32, codebook_dim=4,
        sampling_rate=rate,
    )  # fmt: skip
    model = transformers.DacModel(config)
    for module in model.modules():
        if isinstance(module, nn.Conv1d):  # the class's own init vanishes with depth
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if hasattr(module, "alpha"):
            nn.init.uniform_(module.alpha, 0.5, 2.0)
    return model.eval()


def encodec_model(ratios=(8, 5, 4, 2), rate=24000, levels=4, size=16, **kwargs):
    hop = 1
    for r in ratios:
        hop *= r
    per_level = -(-rate // hop) * (size - 1).bit_length() / 1000
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=8, codebook_size=size, upsampling_ratios=list(ratios),
        sampling_rate=rate, target_bandwidths=[levels * per_level * 1.001], **kwargs,
    )  # fmt: skip
    model = transformers.EncodecModel(config).eval()
    noise = torch.randn(1, config.audio_channels, 40 * hop)
    with torch.no_grad():
        latents = model.encoder(noise)[0].T
    for k, level in enumerate(model.quantizer.layers):  # new ones are all zero
        book = level.codebook
        book.embed.copy_(torch.randn(book.embed.shape) * latents.std() / (k + 1))
        if k == 0:
            book.embed.copy_(latents[torch.arange(size) * 2])
        book.embed_avg.copy_(book.embed)
    return model


def split(name, module):
    """The weight of a convolution as the g and v of weight norm."""
    weight = module.weight.detach()
    g = weight.flatten(1).norm(dim=1).view(-1, 1, 1)
    v = (weight / weight.abs().amax((1, 2), keepdim=True) * 100).round() / 1024
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.zeros_like(v))
    nn.utils.parametrizations.weight_norm(holder)
    holder.load_state_dict(
        {"parametrizations.weight.original0": g, "parametrizations.weight.original1": v}
    )
    module.weight.data.copy_(holder.weight.detach())
    return {f"{name}.weight_g": g, f"{name}.weight_v": v}


def dac_state(model):
    """`state_dict` of descript-audio-codec's DAC with the weights of a transformers DacModel."""
    state = {}

    def conv(native, module):
        state.update(split(native, module))
        state[f"{native}.bias"] = module.bias.detach()

    def snake(native, module):
        state[f"{native}.alpha"] = module.alpha.detach()

    def unit(native, module):
        snake(f"{native}.block.0", module.snake1)
        conv(f"{native}.block.1", module.conv1)
        snake(f"{native}.block.2", module.snake2)
        conv(f"{native}.block.3", module.conv2)

    encoder, decoder = model.encoder, model.decoder
    conv("encoder.block.0", encoder.conv1)
    for i, block in enumerate(encoder.block, 1):
        for j, part in enumerate((block.res_unit1, block.res_unit2, block.res_unit3)):
            unit(f"encoder.block.{i}.block.{j}", part)
        snake(f"encoder.block.{i}.block.3", block.snake1)
        conv(f"encoder.block.{i}.block.4", block.conv1)
    end = len(encoder.block)
    snake(f"encoder.block.{end + 1}", encoder.snake1)
    conv(f"encoder.block.{end + 2}", encoder.conv2)
    conv("decoder.model.0", decoder.conv1)
    for i, block in enumerate(decoder.block, 1):
        snake(f"decoder.model.{i}.block.0", block.snake1)
        conv(f"decoder.model.{i}.block.1", block.conv_t1)
        for j, part in enumerate((block.res_unit1, block.res_unit2, block.res_unit3), 2):
            unit(f"decoder.model.{i}.block.{j}", part)
    snake(f"decoder.model.{end + 1}", decoder.snake1)
    conv(f"decoder.model.{end + 2}", decoder.conv2)
    for k, level in enumerate(model.quantizer.quantizers):
        conv(f"quantizer.quantizers.{k}.in_proj", level.in_proj)
        conv(f"quantizer.quantizers.{k}.out_proj", level.out_proj)
        state[f"quantizer.quantizers.{k}.codebook.weight"] = level.codebook.weight.detach()
    return state


def dac_file(model, path, metadata=True, state=None):
    """Write a DacModel as descript-audio-codec's `save(path, package=False)` does."""
    config = model.config
    kwargs = {
        "encoder_dim": config.encoder_hidden_size,
        "encoder_rates": list(config.downsampling_ratios),
        "latent_dim": None,
        "decoder_dim": config.decoder_hidden_size,
        "decoder_rates": list(config.upsampling_ratios),
        "n_codebooks": config.n_codebooks,
        "codebook_size": config.codebook_size,
        "codebook_dim": config.codebook_dim,
        "quantizer_dropout": False,
        "sample_rate": config.sampling_rate,
    }
    content = {"state_dict": dac_state(model) if state is None else state}
    if metadata:
        content["metadata"] = {"kwargs": kwargs}
    torch.save(content, path)
    return path


def encodec_state(model):
    """`state_dict` of encodec's EncodecModel with the weights of a transformers EncodecModel."""
    state = {}

    def wrapped(native, module, inner):  # SConv1d holds NormConv1d holds the convolution
        weights = module.conv.state_dict()
        for ours, theirs in (
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
            ("weight", "weight"),
            ("bias", "bias"),
        ):
            if ours in weights:
                state[f"{native}.{inner}.{inner}.{theirs}"] = weights[ours]
        if hasattr(module, "norm"):
            state[f"{native}.{inner}.norm.weight"] = module.norm.weight.detach()
            state[f"{native}.{inner}.norm.bias"] = module.norm.bias.detach()

    for side in ("encoder", "decoder"):
        for i, layer in enumerate(getattr(model, side).layers):
            native = f"{side}.model.{i}"
            kind = type(layer).__name__
            if kind == "EncodecConv1d":
                wrapped(native, layer, "conv")
            elif kind == "EncodecConvTranspose1d":
                wrapped(native, layer, "convtr")
            elif kind == "EncodecResnetBlock":
                wrapped(f"{native}.block.1", layer.block[1], "conv")
                wrapped(f"{native}.block.3", layer.block[3], "conv")
                if hasattr(layer.shortcut, "conv"):
                    wrapped(f"{native}.shortcut", layer.shortcut, "conv")
            elif kind == "EncodecLSTM":
                for name, tensor in layer.lstm.state_dict().items():
                    state[f"{native}.lstm.{name}"] = tensor
    for k, level in enumerate(model.quantizer.layers):
        for name in ("inited", "cluster_size", "embed", "embed_avg"):
            state[f"quantizer.vq.layers.{k}._codebook.{name}"] = getattr(level.codebook, name)
    return state


def audiocraft_settings(config):
    """``xp.cfg`` of an audiocraft compression model, with its references unresolved."""
    ratios = list(config.upsampling_ratios)
    return f"""
sample_rate: {config.sampling_rate}
channels: {config.audio_channels}
compression_model: encodec
encodec:
  autoencoder: seanet
  quantizer: rvq
  sample_rate: ${{sample_rate}}
  channels: ${{channels}}
  causal: {str(config.use_causal_conv).lower()}
  renormalize: false
seanet:
  dimension: {config.hidden_size}
  channels: ${{channels}}
  causal: ${{encodec.causal}}
  n_filters: {config.num_filters}
  n_residual_layers: 1
  ratios: {ratios}
  activation: ELU
  activation_params: {{alpha: 1.0}}
  norm: weight_norm
  norm_params: {{}}
  dilation_base: {config.dilation_growth_rate}
  pad_mode: {config.pad_mode}
  true_skip: true
  compress: 2
  lstm: 2
  disable_norm_outer_blocks: 0
  decoder: {{trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}}
  encoder: {{}}
rvq: {{n_q: {config.num_quantizers}, q_dropout: false, bins: {config.codebook_size}}}
"""
