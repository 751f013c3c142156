"""DAC and EnCodec through their projects' own packages: ``package:dac:weights.pth``, extra ``dac``,
and ``package:encodec:FILE.th``, extra ``encodec``.

For those who want the reference implementation at work; `rvqlm.codecs.native` loads the same files
without it, with the same codes, audio and fingerprint. Only the models' encoding and decoding is
called, not DAC's `compress`, which normalises loudness and cuts the audio so that codes change.
With the package EnCodec takes recordings whole, those at 48 kHz segment by segment.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from rvqlm.codecs.base import Backend, Codec
from rvqlm.codecs.cards import find_file, remembered
from rvqlm.codecs.dac import DacCodec, package_kwargs
from rvqlm.codecs.encodec import EncodecCodec
from rvqlm.codecs.encodec_segments import EncodecSegmentCodec
from rvqlm.codecs.native import kind_of, to_transformers
from rvqlm.codecs.native_checkpoint import NativeCheckpoint, read_native
from rvqlm.errors import UserError


class PackageDacCodec(DacCodec):
    """`dac.DAC` behind the interface of its transformers twin, which gives shapes, fingerprint and
    context."""

    def use(self, model: nn.Module) -> PackageDacCodec:
        """Replace the twin by the package's model."""
        self.model = model.float().requires_grad_(False)
        return self.eval()

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, n_quantizers=self.info.num_codebooks)[1]

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(self.model.quantizer.from_codes(codes)[0])


class PackageEncodecCodec(EncodecCodec):
    """`encodec.EncodecModel` at 24 or 32 kHz behind the interface of its transformers twin."""

    # the twin's streams run its layers one by one; here only the package's own calls are made
    encode_blocks = Codec.encode_blocks
    piecewise = Codec.piecewise

    def use(self, model: nn.Module) -> PackageEncodecCodec:
        """Replace the twin by the package's model."""
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


def load_dac(name: str, num_codebooks: int | None = None) -> Codec:
    """The codec ``package:dac:FILE``; `UserError` where the package or the file is missing."""
    package, path, checkpoint = _open(DAC, name)
    model = package.DAC(**package_kwargs(checkpoint))
    model.load_state_dict(checkpoint.state)
    return PackageDacCodec(to_transformers(checkpoint), path, num_codebooks).use(model)


def load_encodec(name: str, num_codebooks: int | None = None) -> Codec:
    """The codec ``package:encodec:FILE``; `UserError` where the package or the file is missing."""
    package, path, checkpoint = _open(ENCODEC, name)
    twin = to_transformers(checkpoint)
    model = _encodec_model(package, twin.config)
    model.load_state_dict(checkpoint.state)
    segmented = EncodecSegmentCodec.fits(twin.config)
    adapter = PackageEncodecSegmentCodec if segmented else PackageEncodecCodec
    return adapter(twin, path, num_codebooks).use(model)


def _open(backend: Backend, name: str) -> tuple[ModuleType, str, NativeCheckpoint]:
    """The package, what tokens remember of the codec's name, and the contents of its file."""
    prefix = f"package:{backend.name}:"
    file = name.removeprefix(prefix)
    package = backend.require(name, instead=f"give --codec {file}")
    path = find_file(file)
    checkpoint = read_native(path)
    kind = kind_of(checkpoint)
    if kind != backend.name:
        whose = {"dac": "a DAC", "encodec": "an EnCodec"}[kind]
        raise UserError(f"codec {name}: {path} holds the weights of {whose}")
    return package, prefix + remembered(file, path), checkpoint


def _encodec_model(package, config) -> nn.Module:
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


DAC = Backend(
    "dac",
    (PackageDacCodec,),
    takes=lambda name: name.startswith("package:dac:"),
    load=load_dac,
    give="package:dac:FILE.pth",
    module="dac",
    distribution="descript-audio-codec",
    extra="dac",
)

ENCODEC = Backend(
    "encodec",
    (PackageEncodecCodec, PackageEncodecSegmentCodec),
    takes=lambda name: name.startswith("package:encodec:"),
    load=load_encodec,
    give="package:encodec:FILE.th",
    module="encodec",
    distribution="encodec",
    extra="encodec",
)
