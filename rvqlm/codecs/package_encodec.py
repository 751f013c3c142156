"""EnCodec through Meta's own package: ``package:encodec:FILE.th``, extra ``encodec``.

As with `package_dac`: the same codes, audio and fingerprint as the plain path of the file, which
needs no package. FILE is ``encodec_24khz-d7cc33bc.th``, ``encodec_48khz-7e698e3e.th`` or MusicGen's
``compression_state_dict.bin``, whose layers the package can build as well. Files go in whole, those
at 48 kHz segment by segment.
"""

from __future__ import annotations

from torch import Tensor, nn

from rvqlm.codecs.base import Codec
from rvqlm.codecs.encodec import EncodecCodec
from rvqlm.codecs.encodec_segments import EncodecSegmentCodec
from rvqlm.codecs.native_checkpoint import find_file, read_native, remembered, to_transformers
from rvqlm.codecs.package_import import import_package
from rvqlm.errors import UserError

PREFIX = "package:encodec:"


class PackageEncodecCodec(EncodecCodec):
    """`encodec.EncodecModel` at 24 or 32 kHz behind the interface of its transformers twin."""

    # the twin's streams run its layers one by one; here only the package's own calls are made
    stream_encoder = Codec.stream_encoder
    stream_decoder = Codec.stream_decoder

    def use(self, model: nn.Module) -> PackageEncodecCodec:
        """Replace the twin, which has told shapes and fingerprint, by the package's model."""
        self.model = model.float().requires_grad_(False)
        per_level = model.quantizer.get_bandwidth_per_quantizer(model.frame_rate)
        model.bandwidth = (self.info.num_codebooks + 0.5) * per_level  # rounded down to K levels
        return self.eval()

    def _encode(self, audio: Tensor) -> Tensor:
        ((codes, _),) = self.model.encode(audio)
        return codes

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode([(codes, None)])


class PackageEncodecSegmentCodec(EncodecSegmentCodec):
    """The same at 48 kHz: the package encodes and decodes segments, rvqlm cuts and joins them."""

    use = PackageEncodecCodec.use

    def encode_pieces(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        with self.inference():
            codes, scales = self.model._encode_frame(self.to_model(audio))
        return codes.transpose(1, 2), scales[:, 0].float()

    def _decode_segment(self, codes: Tensor, scale: Tensor | None) -> Tensor:
        if scale is None:
            scale = codes.new_full((len(codes),), self.default_scale, dtype=self.dtype)
        with self.inference():
            return self.model._decode_frame((codes.transpose(1, 2), self.to_model(scale))).float()


def load_package(name: str, num_codebooks: int | None = None) -> Codec:
    """The codec ``package:encodec:FILE``; `UserError` where the package or the file is missing."""
    file = name.removeprefix(PREFIX)
    package = import_package("encodec", "encodec", "encodec", name, f"give --codec {file}")
    path = find_file(file)
    checkpoint = read_native(path)
    if checkpoint.kind != "encodec":
        raise UserError(f"codec {name}: {path} holds the weights of a DAC")
    twin = to_transformers(checkpoint)
    config = twin.config
    model = _model(package, config)
    model.load_state_dict(checkpoint.state)
    segmented = config.normalize or config.chunk_length_s is not None
    adapter = PackageEncodecSegmentCodec if segmented else PackageEncodecCodec
    return adapter(twin, PREFIX + remembered(file, path), num_codebooks).use(model)


def _model(package, config) -> nn.Module:
    """`encodec.EncodecModel` of the same layers as transformers' with `config`."""
    shared = {
        "channels": config.audio_channels,
        "dimension": config.hidden_size,
        "n_filters": config.num_filters,
        "n_residual_layers": config.num_residual_layers,
        "ratios": list(config.upsampling_ratios),
        "norm": config.norm_type,
        "kernel_size": config.kernel_size,
        "last_kernel_size": config.last_kernel_size,
        "residual_kernel_size": config.residual_kernel_size,
        "dilation_base": config.dilation_growth_rate,
        "causal": config.use_causal_conv,
        "pad_mode": config.pad_mode,
        "true_skip": not config.use_conv_shortcut,
        "compress": config.compress,
        "lstm": config.num_lstm_layers,
    }
    levels = config.num_quantizers
    return package.EncodecModel(
        package.modules.SEANetEncoder(**shared),
        package.modules.SEANetDecoder(**shared, trim_right_ratio=config.trim_right_ratio),
        package.quantization.ResidualVectorQuantizer(
            dimension=config.hidden_size, n_q=levels, bins=config.codebook_size
        ),
        target_bandwidths=list(config.target_bandwidths),
        sample_rate=config.sampling_rate,
        channels=config.audio_channels,
        normalize=config.normalize,
        segment=config.chunk_length_s,
        overlap=config.overlap if config.overlap is not None else 0.01,
    )
